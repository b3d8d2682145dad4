import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.time.Duration;
import java.util.Properties;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.KStream;
import org.apache.kafka.streams.kstream.Produced;

/**
 * Copies a topic with Kafka Streams, exactly once, with a commit every 100 ms and two threads; see scripts/peers.
 *
 * <p>Arguments: BOOTSTRAP SOURCE TARGET GROUP STATE-DIRECTORY plain|json [SETTING=VALUE...].
 */
public class CopyStreams {
  private static final ObjectMapper JSON = new ObjectMapper();

  public static void main(String[] args) {
    Properties settings = new Properties();
    settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, args[0]);
    settings.put(StreamsConfig.APPLICATION_ID_CONFIG, args[3]);
    settings.put(StreamsConfig.STATE_DIR_CONFIG, args[4]);
    settings.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
    settings.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, 100);
    settings.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, 2);
    settings.put(StreamsConfig.REPLICATION_FACTOR_CONFIG, 1);
    settings.put(StreamsConfig.consumerPrefix(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG), "earliest");
    settings.put(StreamsConfig.producerPrefix(ProducerConfig.COMPRESSION_TYPE_CONFIG), "lz4");
    for (int at = 6; at < args.length; at++) {
      String[] setting = args[at].split("=", 2);
      settings.put(setting[0], setting[1]);
    }

    StreamsBuilder builder = new StreamsBuilder();
    var bytes = Serdes.ByteArray();
    KStream<byte[], byte[]> records = builder.stream(args[1], Consumed.with(bytes, bytes));
    if (args[5].equals("json")) {
      records = records.mapValues(CopyStreams::edited).filter((key, value) -> value != null);
    }
    records.to(args[2], Produced.with(bytes, bytes));
    KafkaStreams streams = new KafkaStreams(builder.build(), settings);
    Runtime.getRuntime().addShutdownHook(new Thread(() -> streams.close(Duration.ofSeconds(10))));
    streams.start();
  }

  /** What plugins/test-guests/json-edit does: null where the record is dropped. */
  private static byte[] edited(byte[] value) {
    try {
      ObjectNode fields = (ObjectNode) JSON.readTree(value);
      if (fields.path("status").asText().equals("test")) {
        return null;
      }
      fields.remove("ip");
      fields.put("routed_by", "router");
      return JSON.writeValueAsBytes(fields);
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }
}
