//! What the published ZeroVL program printed, case by case of `fixtures/zerovl/manifest.json`.

mod losses;
mod optimizer;
mod pictures;
mod sampling;
mod words;

/// What these tests handle.
pub const HANDLED: [&[(&str, &str)]; 5] = [
    losses::HANDLED,
    optimizer::HANDLED,
    pictures::HANDLED,
    sampling::HANDLED,
    words::HANDLED,
];

#[test]
fn golden_every_op_that_is_listed_has_a_test() {
    let listed = fixtures::ops_of("train").into_iter();
    let mut listed: Vec<&str> = listed
        .filter(|op| op.set == "zerovl")
        .map(|op| op.name)
        .collect();
    let mut handled: Vec<&str> = HANDLED.concat().into_iter().map(|(_, op)| op).collect();
    listed.sort_unstable();
    handled.sort_unstable();
    assert_eq!(handled, listed);
}
