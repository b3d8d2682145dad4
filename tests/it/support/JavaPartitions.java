import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.util.HexFormat;
import org.apache.kafka.clients.producer.internals.BuiltInPartitioner;
import org.apache.kafka.common.utils.Utils;

/** For each line "HEX,PARTITIONS": the key's murmur2 and the partition that Kafka's own producer sends it to. */
public class JavaPartitions {
    public static void main(String[] args) throws Exception {
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in));
        StringBuilder out = new StringBuilder();
        for (String line = in.readLine(); line != null; line = in.readLine()) {
            int comma = line.indexOf(',');
            byte[] key = HexFormat.of().parseHex(line.substring(0, comma));
            int partitions = Integer.parseInt(line.substring(comma + 1));
            out.append(Utils.murmur2(key)).append(',')
               .append(BuiltInPartitioner.partitionForKey(key, partitions)).append('\n');
        }
        System.out.print(out);
    }
}
