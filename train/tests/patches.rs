//! Which patches are to be guessed.

use merge::random::Draws;
use train::augment::PatchMasking;

#[test]
fn never_more_than_the_target_are_masked_and_mostly_just_so_many() {
    let masking = PatchMasking::new(14);
    assert_eq!((masking.n_masked, masking.least), (75, 16));
    let mut draws = Draws::new(1, "patches").sequence();
    let (mut n_full, mut total) = (0, 0);
    for _ in 0..1000 {
        let masked = masking.draw(&mut draws);
        assert_eq!(masked.len(), 196);
        assert!(masked.iter().all(|&value| value < 2));
        let n: usize = masked.iter().map(|&value| usize::from(value)).sum();
        assert!((1..=75).contains(&n), "{n}");
        n_full += usize::from(n == 75);
        total += n;
    }
    // Few end early, for the last block may be of a size that does not fit: a block of
    // the remaining few patches has an area between them and 16.
    assert!(total > 68 * 1000, "{total}");
    assert!(n_full > 300, "{n_full}");
}

/// Height and width of the rectangle around all masked patches.
fn extent(masked: &[u8]) -> (usize, usize) {
    let places = || (0..196).filter(|&place| masked[place] == 1);
    let side = |of: &dyn Fn(usize) -> usize| {
        let (least, most) = (places().map(of).min(), places().map(of).max());
        most.zip(least).map_or(0, |(most, least)| most - least + 1)
    };
    (side(&|place| place / 14), side(&|place| place % 14))
}

#[test]
fn a_block_is_a_rectangle_anywhere_in_the_grid() {
    // With this aspect ratio alone, the only block of 16 patches is 4 by 4, and it is enough.
    let masking = PatchMasking {
        n_masked: 16,
        aspect: 1.0,
        ..PatchMasking::new(14)
    };
    let mut draws = Draws::new(2, "patches").sequence();
    let mut firsts = [0; 196];
    let n = 11 * 11 * 100;
    for _ in 0..n {
        let masked = masking.draw(&mut draws);
        assert_eq!(masked.iter().filter(|&&value| value == 1).count(), 16);
        assert_eq!(extent(&masked), (4, 4));
        firsts[masked.iter().position(|&value| value == 1).unwrap_or(0)] += 1;
    }
    // Each of 11 by 11 places 100 times, six standard errors.
    for (place, &count) in firsts.iter().enumerate() {
        match place / 14 < 11 && place % 14 < 11 {
            true => assert!((count - 100_i32).abs() < 60, "{place}: {count}"),
            false => assert_eq!(count, 0, "{place}"),
        }
    }
}

#[test]
fn blocks_are_upright_as_often_as_flat() {
    let masking = PatchMasking {
        n_masked: 20,
        ..PatchMasking::new(14)
    };
    let mut draws = Draws::new(4, "patches").sequence();
    let mut counts = [0_i32; 3];
    for _ in 0..3000 {
        let (height, width) = extent(&masking.draw(&mut draws));
        counts[(height.cmp(&width) as i8 + 1) as usize] += 1;
    }
    let [flat, _, upright] = counts;
    assert!(flat > 900 && upright > 900, "{counts:?}");
    // Five standard errors of a difference.
    assert!((flat - upright).abs() < 274, "{counts:?}");
}

#[test]
fn every_patch_is_masked_about_as_often_as_its_mirror_images() {
    let masking = PatchMasking::new(14);
    let mut draws = Draws::new(3, "patches").sequence();
    let n = 4000;
    let mut counts = vec![0_i32; 196];
    for _ in 0..n {
        for (count, value) in counts.iter_mut().zip(masking.draw(&mut draws)) {
            *count += i32::from(value);
        }
    }
    // Five standard errors of a difference of two shares of at most a half.
    let error = (5.0 * (2.0 * 0.25 * f64::from(n)).sqrt()) as i32;
    for row in 0..14 {
        for column in 0..14 {
            let count = counts[14 * row + column];
            for other in [
                counts[14 * row + 13 - column],
                counts[14 * (13 - row) + column],
                counts[14 * column + row],
            ] {
                assert!((count - other).abs() < error, "{row} {column}: {counts:?}");
            }
        }
    }
}

#[test]
fn small_grids_and_the_same_draws_are_served() {
    for side in 1..20 {
        let masking = PatchMasking::new(side);
        let masked = |name: &str| masking.draw(&mut Draws::new(1, name).sequence());
        let n: usize = masked("a").iter().map(|&value| usize::from(value)).sum();
        assert!(n <= masking.n_masked, "{side}: {n}");
        assert!(side < 3 || n > 0, "{side}: nothing is masked");
        assert_eq!(masked("a"), masked("a"));
    }
    let empty = PatchMasking {
        n_masked: 0,
        ..PatchMasking::new(14)
    };
    let masked = empty.draw(&mut Draws::new(1, "a").sequence());
    assert!(masked.iter().all(|&value| value == 0));
}
