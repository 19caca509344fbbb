//! The dense operations of RegMean, by each implementation that is built.

#[cfg(feature = "lapack")]
use merge::linear_algebra::Lapack;
use merge::linear_algebra::{Faer, LinearAlgebra};
use ndarray::{Array2, array};

fn implementations() -> Vec<Box<dyn LinearAlgebra>> {
    vec![
        Box::new(Faer),
        #[cfg(feature = "lapack")]
        Box::new(Lapack),
    ]
}

#[test]
fn a_two_by_two_system_is_solved_as_by_hand() {
    for algebra in implementations() {
        // [[1, 2], [3, 4]] · [[2, 1], [1, 3]] = [[4, 7], [10, 15]]
        let weight = array![[1.0, 2.0], [3.0, 4.0]];
        let gram = array![[2.0, 1.0], [1.0, 3.0]];
        let product = algebra.multiply(&weight, &gram);
        assert_eq!(
            product,
            array![[4.0, 7.0], [10.0, 15.0]],
            "{}",
            algebra.name()
        );
        let solved = algebra
            .solve_right(product, gram)
            .expect("positive definite");
        assert!(
            (&solved - &weight).iter().all(|d| d.abs() < 1e-14),
            "{}",
            algebra.name()
        );
    }
}

#[test]
fn a_wide_layer_is_solved_to_a_small_residual() {
    // 40 outputs, 90 inputs: more than one block of either factorization.
    let rows = Array2::from_shape_fn((200, 90), |(i, j)| {
        ((i * 37 + j * 91) % 101) as f64 / 50.0 - 1.0 + f64::from(i % 90 == j)
    });
    let gram = rows.t().dot(&rows);
    let weight = Array2::from_shape_fn((40, 90), |(i, j)| ((i * 7 + j * 13) % 29) as f64 - 14.0);
    for algebra in implementations() {
        let product = algebra.multiply(&weight, &gram);
        let solved = algebra
            .solve_right(product.clone(), gram.clone())
            .expect("full rank");
        let residual = (&algebra.multiply(&solved, &gram) - &product)
            .mapv(f64::abs)
            .fold(0.0, |a, &b| f64::max(a, b));
        let scale = product.mapv(f64::abs).fold(0.0, |a, &b| f64::max(a, b));
        assert!(
            residual < 90.0 * f64::EPSILON * scale,
            "{}: {residual}",
            algebra.name()
        );
    }
}

#[test]
fn fewer_rows_than_inputs_are_reported_not_solved() {
    let rows = Array2::from_shape_fn((5, 8), |(i, j)| {
        ((3 * i + 5 * j) % 7) as f64 + 0.1 * (i * j) as f64
    });
    let gram = rows.t().dot(&rows);
    for algebra in implementations() {
        let result = algebra.solve_right(Array2::zeros((2, 8)), gram.clone());
        assert!(result.is_err(), "{}", algebra.name());
    }
}

#[test]
fn a_dead_input_names_its_row() {
    for algebra in implementations() {
        let gram = array![[2.0, 0.0], [0.0, 0.0]];
        let error = algebra
            .solve_right(Array2::zeros((1, 2)), gram)
            .expect_err("singular");
        assert!(
            error.pivot.is_none_or(|pivot| pivot == 1),
            "{}",
            algebra.name()
        );
    }
}
