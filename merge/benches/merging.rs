//! The kernels of a merge and the solver of RegMean, at published sizes.
//!
//! `cargo bench -p vlmerge-merge`; `docs/performance.md` says what to hold the numbers against.

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use merge::linear_algebra::{Faer, LinearAlgebra};
use merge::methods::{Arithmetic, GroupShape, Interpolate, MergeMethod, Operation};
use merge::methods::{Base, Chunk, DrawKey, Member, StepRounding, Values};
use merge::{BlockId, DType, Expert, ParamKind, Slot};
use ndarray::Array2;

fn main() {
    divan::main();
}

/// Elements of one fc1 weight of the base model, 3072 × 768.
const FC1_BASE: usize = 3072 * 768;

fn bench_kernel(bencher: Bencher<'_, '_>, method: &dyn MergeMethod) {
    let slot = Slot {
        key: "transformer.blocks.0.mlp.fc1.weight".into(),
        block: Some(BlockId::only(0)),
        module: "mlp.fc1".into(),
        kind: ParamKind::LinearWeight,
    };
    let experts = [Expert::Vision, Expert::Language];
    let group = GroupShape {
        depth: None,
        slot: &slot,
        members: &experts.map(Member::Expert),
        experts: &experts,
        has_base: true,
        shape: &[3072, 768],
        dtype: DType::F32,
        grams: &[None, None],
        values: &Values::default(),
        draws: &DrawKey {
            seed: 0,
            name: slot.key.clone(),
            tape: None,
        },
    };
    let Ok(Operation::Elementwise(kernel)) = method.operation(&group) else {
        unreachable!("both methods are element-wise for two experts");
    };
    let members = [vec![0.25f32; FC1_BASE], vec![0.5f32; FC1_BASE]];
    let base = vec![0.125f32; FC1_BASE];
    let mut out = vec![0f32; FC1_BASE];
    bencher
        .counter(ItemsCount::new(FC1_BASE))
        .counter(BytesCount::of_many::<f32>(FC1_BASE * 3))
        .bench_local(|| {
            let chunk = Chunk {
                members: &[&members[0], &members[1]],
                base: (method.needs().base == Base::Required).then_some(&base),
                paired: &[],
                first: 0,
            };
            kernel
                .combine_f32(&chunk, StepRounding::None, &mut out)
                .expect("it cannot fail");
        });
}

#[divan::bench]
fn interpolate_3072x768_f32_one_thread(bencher: Bencher<'_, '_>) {
    let method = Interpolate {
        ratio: 0.5,
        weights: None,
    };
    bench_kernel(bencher, &method);
}

#[divan::bench]
fn arithmetic_3072x768_f32_one_thread(bencher: Bencher<'_, '_>) {
    let method = Arithmetic {
        lambda: 0.75,
        in_place: false,
    };
    bench_kernel(bencher, &method);
}

/// A symmetric positive definite matrix, well conditioned.
fn gram(width: usize) -> Array2<f64> {
    Array2::from_shape_fn((width, width), |(i, j)| {
        let distance = i.abs_diff(j) as f64;
        if i == j {
            3.0
        } else {
            1.0 / (1.0 + distance * distance)
        }
    })
}

fn bench_regmean(bencher: Bencher<'_, '_>, algebra: &dyn LinearAlgebra, out: usize, width: usize) {
    let weight = Array2::from_shape_fn((out, width), |(i, j)| ((i * 31 + j * 17) % 97) as f64);
    let gram = gram(width);
    bencher.bench_local(|| {
        let product = algebra.multiply(&weight, &gram);
        algebra.solve_right(product, &gram + &gram)
    });
}

#[divan::bench(args = [(768, 768), (768, 3072)], sample_count = 5)]
fn regmean_two_experts_faer(bencher: Bencher<'_, '_>, (out, width): (usize, usize)) {
    bench_regmean(bencher, &Faer, out, width);
}

#[cfg(feature = "lapack")]
#[divan::bench(args = [(768, 768), (768, 3072)], sample_count = 5)]
fn regmean_two_experts_lapack(bencher: Bencher<'_, '_>, (out, width): (usize, usize)) {
    bench_regmean(bencher, &merge::linear_algebra::Lapack, out, width);
}
