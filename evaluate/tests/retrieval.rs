//! Retrieval: what does not depend on order, and ranks against a sort.

use evaluate::metrics::retrieval::{Captions, Ties, sample, standings};

use crate::fixture::{integers, json, list, matrix, number};

#[test]
fn the_order_of_rows_and_columns_does_not_matter() {
    let cases = json("metrics/retrieval.json");
    for case in list(&cases["cases"]) {
        let scores = matrix(&case["scores_times_scale"], number(&case["scale"]));
        let text_ids = integers(&case["text_to_image"]);
        let image_ids: Vec<i64> = (0..scores.nrows() as i64).collect();
        let mut turned = scores.clone();
        turned.invert_axis(ndarray::Axis(0));
        turned.invert_axis(ndarray::Axis(1));
        let backwards = |ids: &[i64]| -> Vec<i64> { ids.iter().rev().copied().collect() };
        let straight = Captions::new(&image_ids, &text_ids).expect("captions");
        let reversed = Captions::new(&backwards(&image_ids), &backwards(&text_ids))
            .expect("the same captions");
        let [a, b] = [(&scores, &straight), (&turned, &reversed)].map(|(scores, captions)| {
            let found = standings(&scores.view(), captions).expect("numbers");
            let judged = sample(&found, captions, Ties::Expected);
            judged
                .quantities
                .iter()
                .map(|q| judged.value(q))
                .collect::<Vec<_>>()
        });
        assert!(a.len() == b.len() && a.len() > 6, "{}: {a:?}", case["name"]);
        for (a, b) in a.iter().zip(&b) {
            let (a, b) = (a.expect("queries"), b.expect("queries"));
            assert!((a - b).abs() < 1e-9, "{}: {a} and {b}", case["name"]);
        }
    }
}

#[test]
fn ranks_agree_with_a_stable_sort() {
    // 60 images with 300 texts, scores with many ties.
    let (n_images, n_texts) = (60usize, 300usize);
    let scores = ndarray::Array2::from_shape_fn((n_images, n_texts), |(row, column)| {
        ((row * 7919 + column * 104_729) % 41) as f64
    });
    let text_ids: Vec<i64> = (0..n_texts).map(|t| (t * 37 % n_images) as i64).collect();
    let image_ids: Vec<i64> = (0..n_images as i64).collect();
    let captions = Captions::new(&image_ids, &text_ids).expect("captions");
    let found = standings(&scores.view(), &captions).expect("numbers");
    let n_standings = (found.of_texts.len(), found.of_images.len());
    assert_eq!(n_standings, (n_texts, n_images));
    for (text, standing) in found.of_texts.iter().enumerate() {
        let mut order: Vec<usize> = (0..n_images).collect();
        order.sort_by(|&a, &b| scores[(b, text)].total_cmp(&scores[(a, text)]));
        let rank = 1 + order
            .iter()
            .position(|&row| row as i64 == text_ids[text])
            .expect("there");
        assert_eq!(standing.rank(Ties::First), rank as f64);
    }
    for (row, standing) in found.of_images.iter().enumerate() {
        let mut order: Vec<usize> = (0..n_texts).collect();
        order.sort_by(|&a, &b| scores[(row, b)].total_cmp(&scores[(row, a)]));
        let rank = 1 + order
            .iter()
            .position(|&t| text_ids[t] == row as i64)
            .expect("there");
        assert_eq!(standing.rank(Ties::First), rank as f64);
    }
}
