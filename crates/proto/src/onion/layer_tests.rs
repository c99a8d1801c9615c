use super::super::cell::{BACKWARD_LEN, FORWARD_LEN};
use super::super::keys::EPOCH_CELLS;
use super::*;
use proptest::prelude::*;
use warren_types::Suite;

const SUITES: [Suite; 2] = [Suite::Aes256Gcm, Suite::ChaCha20Poly1305];

fn secrets(suite: Suite, i: u8) -> HopSecrets {
    HopSecrets::derive(suite, &[i; 32], &[i ^ 0x55; 96])
}

struct Chain {
    forward: Vec<ForwardClient>,
    hops: Vec<ForwardHop>,
    back: Vec<BackwardClient>,
    voices: Vec<BackwardHop>,
    passes: Vec<BackwardPass>,
}

impl Chain {
    fn new(suite: Suite, count: usize) -> Self {
        let all: Vec<_> = (0..count as u8).map(|i| secrets(suite, i)).collect();
        Self {
            forward: all.iter().map(ForwardClient::new).collect(),
            hops: all.iter().map(ForwardHop::new).collect(),
            back: all.iter().map(BackwardClient::new).collect(),
            voices: all.iter().map(BackwardHop::new).collect(),
            passes: all.iter().map(BackwardPass::new).collect(),
        }
    }

    fn say(&mut self, to: usize, text: &[u8]) -> Vec<u8> {
        let mut buffer = vec![0; SEAL_BUFFER];
        let at = text_at(to + 1);
        buffer[at..at + text.len()].copy_from_slice(text);
        seal_forward(&mut self.forward[..=to], &mut buffer, 1);
        buffer.truncate(BODY_LEN);
        buffer
    }

    /// Passes a body from hop to hop; the hop where it ends and what it says.
    fn carry(&mut self, mut body: Vec<u8>) -> Result<(usize, Vec<u8>), (usize, CellError)> {
        for (i, hop) in self.hops.iter_mut().enumerate() {
            let mut out = vec![0; BODY_LEN];
            match hop.open(&body, &mut out, 1).map_err(|error| (i, error))? {
                Opened::Here => return Ok((i, out[..FORWARD_LEN].to_vec())),
                Opened::Onward => body = out,
            }
        }
        panic!("passed beyond the last hop")
    }

    fn answer(&mut self, from: usize, text: &[u8]) -> Vec<u8> {
        let mut body = vec![0; BODY_LEN];
        body[SLOT_LEN..SLOT_LEN + text.len()].copy_from_slice(text);
        self.voices[from].seal(&mut body, 1);
        for pass in self.passes[..from].iter().rev() {
            pass.add(&mut body);
        }
        body
    }

    fn hear(&mut self, mut body: Vec<u8>) -> Result<(usize, Vec<u8>), CellError> {
        let mut out = vec![0; TEXT_LEN];
        let from = open_backward(&mut self.back, &mut body, &mut out, 1)?;
        Ok((from, out))
    }
}

#[test]
fn every_hop_can_be_spoken_to_and_answers() {
    for suite in SUITES {
        for count in 1..=MAX_HOPS {
            let mut chain = Chain::new(suite, count);
            for round in 0..3u8 {
                for to in 0..count {
                    let text: Vec<u8> = (0..FORWARD_LEN).map(|i| i as u8 ^ round).collect();
                    let body = chain.say(to, &text);
                    assert_eq!(chain.carry(body), Ok((to, text)), "{suite} {count} {to}");
                    let text: Vec<u8> = (0..BACKWARD_LEN).map(|i| i as u8 ^ round).collect();
                    let body = chain.answer(to, &text);
                    assert_eq!(chain.hear(body), Ok((to, text)), "{suite} {count} {to}");
                }
            }
        }
    }
}

#[test]
fn epochs_change_without_a_word_and_old_ones_end() {
    for suite in SUITES {
        let mut chain = Chain::new(suite, 2);
        let body = chain.say(1, b"first");
        chain.carry(body).unwrap();
        let late = chain.say(1, b"late");
        let very_late = chain.say(1, b"very late");
        // The sender's key is old: the next epoch begins.
        let mut buffer = vec![0; SEAL_BUFFER];
        buffer[text_at(2)..text_at(2) + 4].copy_from_slice(b"next");
        seal_forward(&mut chain.forward[..], &mut buffer, 1 + super::super::keys::EPOCH_MS);
        buffer.truncate(BODY_LEN);
        assert_eq!(&chain.carry(buffer).unwrap().1[..4], b"next");
        assert_eq!(chain.hops[0].progress(), (2, 2));
        assert_eq!(&chain.carry(late).unwrap().1[..4], b"late");
        let mut out = vec![0; BODY_LEN];
        let result = chain.hops[0].open(&very_late, &mut out, 10_000);
        assert_eq!(result, Err(CellError::Forged), "{suite}: the epoch before has ended");
        chain.hops.iter_mut().for_each(ForwardHop::cool);
        let mut buffer = vec![0; SEAL_BUFFER];
        seal_forward(&mut chain.forward[..], &mut buffer, 1 + super::super::keys::EPOCH_MS);
        buffer.truncate(BODY_LEN);
        assert!(chain.carry(buffer).is_ok());
    }
}

#[test]
fn a_full_epoch_is_followed_by_the_next() {
    let suite = Suite::Aes256Gcm;
    let secrets = secrets(suite, 1);
    let mut send = SendChain::new(suite, &secrets.forward_chain);
    let mut receive = ReceiveChain::new(suite, &secrets.forward_chain);
    let mut seen = 0;
    for expected in 0..EPOCH_CELLS + 2 {
        let number = send.next_number(1);
        assert_eq!(number, expected);
        if !(3..EPOCH_CELLS - 2).contains(&expected) {
            let counter = Counter { here: true, number };
            let packed = counter.pack(5);
            let mut text = *b"text";
            let tag = send.seal(packed, &mut text);
            let mut out = [0; 4];
            receive.open(counter, packed, (&text, &tag), &mut out, 1).unwrap();
            assert_eq!(&out, b"text");
            seen += 1;
        }
    }
    assert_eq!(seen, 7);
}

/// What a worker does: one buffer for cell after cell.
#[test]
fn a_buffer_used_again_carries_nothing_from_the_entry_to_the_exit() {
    for suite in SUITES {
        for count in 1..=MAX_HOPS {
            let mut chain = Chain::new(suite, count);
            let mut buffer = vec![0; SEAL_BUFFER];
            let at = text_at(count);
            for _ in 0..2 {
                buffer[at..at + FORWARD_LEN].fill(7);
                seal_forward(&mut chain.forward, &mut buffer, 1);
                let mut body = buffer[..BODY_LEN].to_vec();
                for hop in &mut chain.hops {
                    let mut out = vec![0; BODY_LEN];
                    hop.open(&body, &mut out, 1).unwrap();
                    body = out;
                }
                let rest = &body[FORWARD_LEN..TEXT_LEN - (count - 1) * SLOT_LEN];
                assert_eq!(rest, vec![0; rest.len()], "{suite}: {count} hops");
            }
        }
    }
}

#[test]
fn the_key_of_an_epoch_past_is_not_kept_for_whom_it_may_concern() {
    let mut chain = Chain::new(Suite::Aes256Gcm, 1);
    let mut say = |chain: &mut Chain, now_ms| {
        let mut buffer = vec![0; SEAL_BUFFER];
        seal_forward(&mut chain.forward, &mut buffer, now_ms);
        chain.hops[0].open(&buffer[..BODY_LEN], &mut [0; BODY_LEN], now_ms).unwrap();
        chain.hops[0].keeps_previous()
    };
    use super::super::keys::{EPOCH_MS, PREVIOUS_MS};
    assert!(!say(&mut chain, 1));
    assert!(say(&mut chain, 1 + EPOCH_MS));
    assert!(say(&mut chain, 1 + EPOCH_MS + PREVIOUS_MS));
    assert!(!say(&mut chain, 2 + EPOCH_MS + PREVIOUS_MS));
}

/// Bodies at every link are as good as random: no byte position has a value
/// that tells a hop's place.
#[test]
fn bodies_at_all_places_look_alike() {
    for suite in SUITES {
        let mut chain = Chain::new(suite, MAX_HOPS);
        const CELLS: usize = 4096;
        let mut ones = vec![vec![0u32; BODY_LEN * 8]; MAX_HOPS];
        for _ in 0..CELLS {
            let mut body = chain.say(MAX_HOPS - 1, &[0; FORWARD_LEN]);
            for (place, hop) in chain.hops.iter_mut().enumerate() {
                for (i, byte) in body.iter().enumerate() {
                    for bit in 0..8 {
                        ones[place][i * 8 + bit] += u32::from(byte >> bit & 1);
                    }
                }
                let mut out = vec![0; BODY_LEN];
                hop.open(&body, &mut out, 1).unwrap();
                body = out;
            }
        }
        // Fair coins: the largest deviation of 44,416 of them stays below six
        // standard deviations but once in ten thousand runs.
        let deviation = (CELLS as f64).sqrt() / 2.0;
        for (place, ones) in ones.iter().enumerate() {
            for (i, ones) in ones.iter().enumerate() {
                let off = (f64::from(*ones) - CELLS as f64 / 2.0).abs() / deviation;
                assert!(off < 6.5, "{suite}: bit {i} at place {place} is biased: {ones}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn an_altered_or_repeated_cell_dies_at_the_first_hop(
        to in 0..MAX_HOPS, at in 0..BODY_LEN, bit in 0..8u8, aes in any::<bool>(),
    ) {
        let mut chain = Chain::new(SUITES[usize::from(aes)], MAX_HOPS);
        let body = chain.say(to, b"hello");
        let mut bad = body.clone();
        bad[at] ^= 1 << bit;
        prop_assert_eq!(chain.carry(bad), Err((0, CellError::Forged)));
        prop_assert!(chain.carry(body.clone()).is_ok());
        prop_assert_eq!(chain.carry(body.clone()), Err((0, CellError::Replay)));
        prop_assert_eq!(chain.hops[0].open(&body[1..], &mut [0; BODY_LEN], 1), Err(CellError::Forged));
    }

    #[test]
    fn an_altered_or_repeated_answer_is_refused(
        from in 0..MAX_HOPS, at in 0..BODY_LEN, bit in 0..8u8, aes in any::<bool>(),
    ) {
        let mut chain = Chain::new(SUITES[usize::from(aes)], MAX_HOPS);
        let body = chain.answer(from, b"hello");
        let mut bad = body.clone();
        bad[at] ^= 1 << bit;
        prop_assert!(chain.hear(bad).is_err());
        prop_assert!(chain.hear(body.clone()).is_ok());
        prop_assert_eq!(chain.hear(body.clone()), Err(CellError::Replay));
    }

    #[test]
    fn strange_bodies_are_refused(body in proptest::collection::vec(any::<u8>(), BODY_LEN)) {
        let mut chain = Chain::new(Suite::Aes256Gcm, 3);
        prop_assert!(chain.carry(body.clone()).is_err());
        prop_assert!(chain.hear(body).is_err());
    }
}
