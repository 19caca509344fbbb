//! Statistics and hashes of tensors.

use merge::progress::Silent;
use merge::statistics::{sha256, statistics};
use merge::{Checkpoint, DType};

use crate::stored::Stored;

fn checkpoint() -> Checkpoint {
    Stored::new("a")
        .with("four", &[1.0, -3.0, 0.0, 4.0])
        .with("broken", &[f32::NAN, 2.0, f32::INFINITY, -0.0])
        .with("nothing", &[])
        .with_bytes("flags", DType::Bool, &[4], vec![1, 0, 1, 1])
        .with(
            "long",
            &(0..100_000).map(|i| (i % 10) as f32).collect::<Vec<_>>(),
        )
        .open()
}

#[test]
fn statistics_of_small_tensors_by_hand() {
    let checkpoint = checkpoint();
    let found = statistics(checkpoint.source(), &[0, 1, 2, 3], &Silent).expect("readable");
    // mean (1 - 3 + 0 + 4) / 4, variance (0.25 + 12.25 + 0.25 + 12.25) / 4
    assert_eq!((found[0].min, found[0].max), (Some(-3.0), Some(4.0)));
    assert_eq!((found[0].mean, found[0].std), (Some(0.5), Some(2.5)));
    assert_eq!((found[0].n_non_finite, found[0].n_zero), (0, 1));
    assert_eq!((found[1].min, found[1].max), (Some(0.0), Some(2.0)));
    assert_eq!((found[1].n_non_finite, found[1].n_zero), (2, 1));
    assert_eq!(
        (found[2].min, found[2].mean, found[2].std),
        (None, None, None)
    );
    assert_eq!((found[3].mean, found[3].n_zero), (Some(0.75), 1));
}

#[test]
fn statistics_of_a_tensor_of_many_runs_are_those_of_the_whole() {
    let checkpoint = checkpoint();
    let found = &statistics(checkpoint.source(), &[4], &Silent).expect("readable")[0];
    assert!((found.mean.expect("finite") - 4.5).abs() < 1e-12);
    // The variance of 0..10 is 8.25.
    assert!((found.std.expect("finite") - 8.25f64.sqrt()).abs() < 1e-12);
    assert_eq!(found.n_zero, 10_000);
}

#[test]
fn hashes_are_those_of_the_stored_bytes() {
    let checkpoint = checkpoint();
    let found = sha256(checkpoint.source(), &[2, 3], &Silent).expect("readable");
    assert_eq!(
        found,
        [
            // printf '' | sha256sum; printf '\1\0\1\1' | sha256sum
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "52a5c4a10657220cac05c63adfa923c7771c55d868a58ee360eb3d1511985c3e",
        ]
    );
}
