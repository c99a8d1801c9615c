//! How much the WAN emulator carries between two hosts: one TCP stream over a
//! short and a long link, whole super-packets and single packets.
//!
//! `cargo run --release -p warren-lab --example wan_throughput`

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use warren_lab::netem::Profile;
use warren_lab::wan::{Attachment, Wan};
use warren_os::netns::NetNamespace;

fn main() -> anyhow::Result<()> {
    let ms = Duration::from_millis;
    let links = [
        ("no delay, super-packets", Profile::default()),
        ("0.3 ms, super-packets", Profile::delayed(ms(1).mul_f64(0.3))),
        ("5 ms, super-packets", Profile::delayed(ms(5))),
        ("0.3 ms, single packets", Profile { mtu: Some(1500), ..Profile::delayed(ms(1) / 3) }),
        ("5 ms, 1 % loss", Profile { loss: 0.01, ..Profile::delayed(ms(5)) }),
    ];
    for (name, profile) in links {
        let (near, far) = (NetNamespace::create()?, NetNamespace::create()?);
        let mut wan = Wan::new(1)?;
        let a = wan.attach(&near, Attachment::default())?;
        let b = wan.attach(&far, Attachment::default())?;
        wan.change(a, b, |link| *link = profile)?;
        let listener = far.run(|| TcpListener::bind((b.ipv4(), 0)))??;
        let to = listener.local_addr()?;
        let mut stream = near.run(|| TcpStream::connect(to))??;
        let (mut sink, _) = listener.accept()?;
        let reader = std::thread::spawn(move || {
            let mut block = vec![0; 1 << 18];
            let mut total = 0u64;
            let start = Instant::now();
            while let Ok(count @ 1..) = sink.read(&mut block) {
                total += count as u64;
            }
            (total, start.elapsed())
        });
        let block = vec![7; 1 << 18];
        let end = Instant::now() + Duration::from_secs(3);
        while Instant::now() < end {
            stream.write_all(&block)?;
        }
        drop(stream);
        let (total, took) = reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))?;
        let rate = total as f64 * 8.0 / took.as_secs_f64() / 1e9;
        println!("{name:>24}: {rate:5.2} Gb/s  {:?}", wan.counters(a, b)?);
    }
    Ok(())
}
