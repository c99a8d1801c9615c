//! Moving to better paths, without flapping.

use proptest::prelude::*;

use super::*;

#[test]
fn a_path_must_be_a_fifth_better_for_half_a_minute() {
    let mut hysteresis = Hysteresis::default();
    assert!(!hysteresis.should_move(100.0, Some(80.0), 0));
    assert!(!hysteresis.should_move(100.0, Some(79.0), 29_999));
    assert!(hysteresis.should_move(100.0, Some(80.0), 30_000));
    assert!(!hysteresis.should_move(100.0, Some(80.0), 30_001), "the wait starts anew");
    // One bad moment starts it anew too.
    assert!(!hysteresis.should_move(100.0, Some(80.1), 50_000));
    assert!(!hysteresis.should_move(100.0, Some(70.0), 60_000));
    assert!(!hysteresis.should_move(100.0, None, 80_000));
    assert!(!hysteresis.should_move(100.0, Some(70.0), 91_000));
    assert!(hysteresis.should_move(100.0, Some(70.0), 121_000));
}

proptest! {
    /// Two paths whose costs wander by up to a tenth around the same value are
    /// never swapped.
    #[test]
    fn noise_does_not_flap(noise in proptest::collection::vec((0.95_f64..1.05, 0.95_f64..1.05), 600)) {
        let mut hysteresis = Hysteresis::default();
        for (second, (a, b)) in noise.into_iter().enumerate() {
            prop_assert!(!hysteresis.should_move(100.0 * a, Some(100.0 * b), second as u64 * 1000));
        }
    }

    /// After a move the old path has to be better by a fifth in its turn: with
    /// fixed costs there is one move at most.
    #[test]
    fn fixed_costs_move_once(a in 1.0_f64..500.0, b in 1.0_f64..500.0) {
        let (mut hysteresis, mut on_a, mut moves) = (Hysteresis::default(), true, 0);
        for second in 0..600 {
            let (current, other) = if on_a { (a, b) } else { (b, a) };
            if hysteresis.should_move(current, Some(other), second * 1000) {
                on_a = !on_a;
                moves += 1;
            }
        }
        prop_assert_eq!(moves, u32::from(b <= a * 0.8));
    }
}
