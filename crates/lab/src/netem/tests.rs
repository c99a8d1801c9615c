use super::*;

const MS: Duration = Duration::from_millis(1);

/// Sends `count` packets of `length` bytes `gap` apart and takes out what
/// comes, each with the time of handing over and of arrival since the start.
fn send(
    netem: &mut Netem<u32>,
    count: u32,
    length: usize,
    gap: Duration,
) -> Vec<(u32, Duration, Duration)> {
    let start = Instant::now();
    let mut arrived = Vec::new();
    let mut drain = |netem: &mut Netem<u32>, until: Instant| {
        while let Some(at) = netem.poll_timeout().filter(|at| *at <= until) {
            let packet = netem.poll(at).unwrap();
            arrived.push((packet, gap * packet, at - start));
        }
    };
    for i in 0..count {
        let now = start + gap * i;
        drain(netem, now);
        netem.handle(i, length, now);
    }
    drain(netem, start + Duration::from_secs(10_000));
    assert!(netem.is_empty());
    arrived
}

fn order(arrived: &[(u32, Duration, Duration)]) -> Vec<u32> {
    arrived.iter().map(|(packet, ..)| *packet).collect()
}

#[test]
fn a_perfect_wire_delivers_at_once_in_order() {
    let mut netem = Netem::new(Profile::default(), 1).unwrap();
    let arrived = send(&mut netem, 100, 1400, MS);
    assert_eq!(order(&arrived), (0..100).collect::<Vec<_>>());
    assert!(arrived.iter().all(|(_, sent, at)| sent == at));
}

#[test]
fn nothing_comes_before_its_time() {
    let mut netem = Netem::new(Profile::delayed(10 * MS), 1).unwrap();
    let now = Instant::now();
    netem.handle((), 100, now);
    assert_eq!(netem.poll_timeout(), Some(now + 10 * MS));
    assert_eq!(netem.poll(now + 9 * MS), None);
    assert_eq!(netem.poll(now + 10 * MS), Some(()));
    assert_eq!((netem.poll(now + 20 * MS), netem.poll_timeout()), (None, None));
}

#[test]
fn one_seed_one_outcome() {
    let profile = Profile {
        delay: 20 * MS,
        jitter: 5 * MS,
        loss: 0.1,
        reorder: 0.1,
        duplicate: 0.1,
        rate: Some(10_000_000),
        queue: 20_000,
        ..Profile::default()
    };
    let run = |seed| {
        let mut netem = Netem::new(profile, seed).unwrap();
        let arrived = send(&mut netem, 5000, 1000, MS / 2);
        (arrived, netem.counters())
    };
    let (arrived, counters) = run(7);
    assert_eq!((arrived.clone(), counters), run(7));
    assert_ne!(arrived, run(8).0);
    // Every packet is accounted for.
    assert_eq!(
        counters.offered + counters.duplicated,
        counters.delivered + counters.lost + counters.queue_full
    );
    assert_eq!(counters.delivered as usize, arrived.len());
}

/// Within four standard deviations of a binomial distribution: by chance
/// outside once in 16,000 seeds, and the seed is fixed.
fn assert_share(count: u64, of: u64, expected: f64) {
    let deviation = (expected * (1.0 - expected) / of as f64).sqrt();
    let share = count as f64 / of as f64;
    assert!((share - expected).abs() < 4.0 * deviation, "{share} instead of {expected}");
}

#[test]
fn shares_come_out_as_configured() {
    for (seed, share) in [0.001, 0.01, 0.1, 0.5].into_iter().enumerate() {
        let base = Profile::delayed(MS);
        let count = 200_000;
        let run = |profile| {
            let mut netem = Netem::new(profile, seed as u64).unwrap();
            let arrived = send(&mut netem, count, 1000, MS / 10);
            (netem.counters(), arrived.len() as u64)
        };
        let (counters, arrived) = run(Profile { loss: share, ..base });
        assert_share(counters.lost, counters.offered, share);
        assert_eq!(arrived + counters.lost, u64::from(count));
        let (counters, arrived) = run(Profile { duplicate: share, ..base });
        assert_share(counters.duplicated, counters.offered, share);
        assert_eq!(arrived, u64::from(count) + counters.duplicated);
        let (counters, arrived) = run(Profile { reorder: share, ..base });
        assert_share(counters.reordered, counters.offered, share);
        assert_eq!(arrived, u64::from(count));
    }
}

#[test]
fn losses_do_not_come_in_step() {
    // With independent losses of 10 %, a loss is followed by another one time
    // in ten.
    let mut netem = Netem::new(Profile { loss: 0.1, ..Profile::default() }, 3).unwrap();
    let now = Instant::now();
    let lost: Vec<bool> =
        (0..100_000).map(|i| netem.handle(i, 100, now) == Verdict::Lost).collect();
    let pairs = lost.windows(2).filter(|pair| pair[0]).count() as u64;
    let both = lost.windows(2).filter(|pair| pair[0] && pair[1]).count() as u64;
    assert_share(both, pairs, 0.1);
}

#[test]
fn jitter_spreads_evenly_and_keeps_the_order() {
    let profile = Profile { jitter: 4 * MS, ..Profile::delayed(10 * MS) };
    let mut netem = Netem::new(profile, 5).unwrap();
    // Far apart, so that nobody waits for somebody in front.
    let arrived = send(&mut netem, 50_000, 100, 20 * MS);
    let delays: Vec<f64> =
        arrived.iter().map(|(_, sent, at)| (*at - *sent).as_secs_f64() * 1e3).collect();
    let mean = delays.iter().sum::<f64>() / delays.len() as f64;
    let variance = delays.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / delays.len() as f64;
    assert!((mean - 10.0).abs() < 0.05, "mean {mean} ms");
    // Of a uniform distribution 8 ms wide: 64/12.
    assert!((variance - 64.0 / 12.0).abs() < 0.1, "variance {variance}");
    assert!(delays.iter().all(|d| (6.0..=14.0).contains(d)));
    // Close together they keep their order all the same.
    let mut netem = Netem::new(profile, 5).unwrap();
    assert_eq!(order(&send(&mut netem, 10_000, 100, MS / 10)), (0..10_000).collect::<Vec<_>>());
}

#[test]
fn the_overtaken_come_late_and_the_others_in_order() {
    let profile = Profile { reorder: 0.2, reorder_by: 3 * MS, ..Profile::delayed(10 * MS) };
    let mut netem = Netem::new(profile, 9).unwrap();
    let arrived = send(&mut netem, 10_000, 100, MS);
    let (late, in_time): (Vec<_>, Vec<_>) =
        arrived.iter().partition(|(_, sent, at)| *at - *sent > 10 * MS);
    assert_share(late.len() as u64, 10_000, 0.2);
    assert!(late.iter().all(|(_, sent, at)| *at - *sent == 13 * MS));
    assert!(in_time.is_sorted_by_key(|(packet, ..)| *packet));
    assert!(!arrived.is_sorted_by_key(|(packet, ..)| *packet));
}

#[test]
fn the_rate_limit_holds_and_the_queue_drops_its_tail() {
    // 8 Mb/s are 1 byte a microsecond: 1000 bytes take 1 ms.
    let profile = Profile { rate: Some(8_000_000), queue: 10_000, ..Profile::delayed(5 * MS) };
    let mut netem = Netem::new(profile, 1).unwrap();
    // Twice the rate for a second: 2000 packets offered.
    let arrived = send(&mut netem, 2000, 1000, MS / 2);
    let delays: Vec<Duration> = arrived.iter().map(|(_, sent, at)| *at - *sent).collect();
    assert_eq!(delays[0], 6 * MS, "one packet's time on the wire and the delay");
    // No packet waits longer than a full queue takes to drain.
    assert!(delays.iter().all(|delay| *delay <= (5 + 10) * MS + MS));
    let counters = netem.counters();
    // About 1000 fit into the second, the queue holds 10 more.
    assert!((1000..=1012).contains(&counters.delivered), "{counters:?}");
    assert_eq!(counters.delivered + counters.queue_full, 2000);
    let span = arrived.last().unwrap().2 - arrived[0].2;
    let rate = (counters.delivered_bytes - 1000) as f64 * 8.0 / span.as_secs_f64();
    assert!((rate - 8e6).abs() < 8e3, "{rate} bit/s");
    // Below the rate nothing is dropped and nobody waits.
    let mut netem = Netem::new(profile, 1).unwrap();
    let arrived = send(&mut netem, 500, 1000, 2 * MS);
    assert!(arrived.iter().all(|(_, sent, at)| *at - *sent == 6 * MS));
}

#[test]
fn the_mtu_drops_what_is_longer() {
    let mut netem = Netem::new(Profile { mtu: Some(1280), ..Profile::default() }, 1).unwrap();
    let now = Instant::now();
    assert_eq!(netem.handle(1, 1280, now), Verdict::Queued);
    assert_eq!(netem.handle(2, 1281, now), Verdict::TooBig);
    assert_eq!((netem.poll(now), netem.poll(now)), (Some(1), None));
}

#[test]
fn links_change_while_packets_are_on_the_way() {
    let now = Instant::now();
    let mut netem = Netem::new(Profile::delayed(100 * MS), 1).unwrap();
    netem.handle(1, 100, now);
    netem.set_profile(Profile::delayed(10 * MS)).unwrap();
    netem.handle(2, 100, now);
    // A shorter way opened, but who is in line stays in line.
    assert_eq!(netem.poll(now + 99 * MS), None);
    assert_eq!(netem.poll(now + 100 * MS), Some(1));
    assert_eq!(netem.poll(now + 100 * MS), Some(2));
    netem.handle(3, 100, now + 100 * MS);
    let cut = Profile { cut: true, ..Profile::delayed(10 * MS) };
    netem.set_profile(cut).unwrap();
    assert_eq!(netem.handle(4, 100, now + 101 * MS), Verdict::Cut);
    assert_eq!((netem.poll(now + 500 * MS), netem.counters().cut), (None, 2));
    assert!(netem.set_profile(Profile { loss: 2.0, ..cut }).is_err());
    assert_eq!(netem.profile(), &cut);
    netem.set_profile(Profile::delayed(10 * MS)).unwrap();
    netem.handle(5, 100, now + 600 * MS);
    assert_eq!(netem.poll(now + 610 * MS), Some(5));
}
