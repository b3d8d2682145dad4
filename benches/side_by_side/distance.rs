//! The copy with a broker that is further away: on the same machine, and each byte takes its time on the way there and back.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use crate::contenders::{How, PLAIN, measure};
use crate::records::Kafka;
use crate::table::{Spread, how};
use crate::{Options, pace};

/// In each direction. Between zones it is about one, and a coordinator's answer waits for its replicas besides.
const DELAY: Duration = Duration::from_millis(5);
/// On their way in one direction of a connection, in pieces of what one read brings.
const PIECES: usize = 4096;
/// Bytes of a value, and of how many times `--records` the records are. The second half is measured: a second producer has to be made
/// first, which takes as many answers as anything else.
const SIZES: [(&str, usize, usize); 2] = [("1 KiB", 1024, 2), ("100 B", 100, 10)];
const REFERENCE: &str = "bare loop";

pub(crate) fn run(options: &Options) -> String {
    let kafka = &Kafka::start_behind(delayed);
    let rounds = options.rounds(5);
    let contenders = [(REFERENCE, How::Loop { keeps: false, edits: false }), ("millrace, no plugin", PLAIN)];
    let mut told = format!("{}\n\n| | records/s | CPU a record |\n|---|---|---|\n", how(rounds));
    for (label, size, times) in SIZES {
        let count = options.records * times;
        let source = kafka.fill(&format!("source-{size}"), count, size, false);
        let mut runs: BTreeMap<&str, Vec<_>> = BTreeMap::new();
        for round in 1..=rounds {
            for (name, how) in &contenders {
                let measured = measure(kafka, how, &source, count / 2, round == 1);
                eprintln!("distance, {label}, round {round}: {name}: {measured:?}");
                runs.entry(name).or_default().push(measured);
            }
        }
        for (name, _) in &contenders {
            let (rate, cpu) = (
                Spread::of_ratios(&runs[name], &runs[REFERENCE], |run| run.rate),
                Spread::of_ratios(&runs[name], &runs[REFERENCE], |run| run.cpu),
            );
            writeln!(told, "| {label}: {name} | {rate} | {cpu} |").expect("a text takes all");
        }
    }
    told
}

/// A port behind which lies the other, further away.
fn delayed(port: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let own = listener.local_addr().expect("it is bound").port();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let Ok((client, Ok(broker))) = client.map(|client| (client, TcpStream::connect(("127.0.0.1", port))))
            else {
                continue;
            };
            let there = (client.try_clone().expect("a socket"), broker.try_clone().expect("a socket"));
            pass_on(there.0, there.1);
            pass_on(broker, client);
        }
    });
    own
}

/// Passes on what comes from the one to the other, as much later. Ends with either.
fn pass_on(mut from: TcpStream, mut to: TcpStream) {
    let (pieces, to_write) = sync_channel::<(Instant, Vec<u8>)>(PIECES);
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            if pieces.send((Instant::now() + DELAY, buffer[..read].to_vec())).is_err() {
                break;
            }
        }
    });
    std::thread::spawn(move || {
        let _ = to.set_nodelay(true);
        for (at, piece) in to_write {
            while let Some(left) = at.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
                pace(left);
            }
            if to.write_all(&piece).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
}
