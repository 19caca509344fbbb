//! Checkpoints that open as the whole model.

use super::*;

#[test]
fn ranks_and_stages_are_one_model() {
    for is_legacy in [false, true] {
        for (tensors, stages, turns) in [
            (1, 1, 1),
            (2, 1, 1),
            (4, 1, 1),
            (1, 2, 1),
            (2, 4, 1),
            (2, 2, 2),
        ] {
            for is_gated in [false, true] {
                for is_tied in [false, true] {
                    let run = Run {
                        tensors,
                        stages,
                        turns,
                        is_gated,
                        is_tied,
                        is_legacy,
                        ..RUN
                    };
                    let home = written(run, &unchanged);
                    is_the_model(&opened(home.path()), run);
                    is_the_model(&opened(&home.path().join("iter_0000005")), run);
                }
            }
        }
    }
}

#[test]
fn version_0_has_queries_then_keys_then_values() {
    let run = Run {
        version: 0.0,
        is_legacy: true,
        ..RUN
    };
    is_the_model(&opened(written(run, &unchanged).path()), run);
}

#[test]
fn what_the_run_says_is_shown() {
    let checkpoint = opened(written(RUN, &unchanged).path());
    let paths: Vec<String> = checkpoint
        .info()
        .values
        .iter()
        .map(|(path, _)| path.to_string())
        .collect();
    assert!(paths.contains(&"args.num_layers".to_owned()), "{paths:?}");
    assert!(paths.contains(&"iteration".to_owned()), "{paths:?}");
    let notes = checkpoint.notes().join("\n");
    assert!(notes.contains("output_layer.weight"), "{notes}");
}

#[test]
fn the_last_iteration_is_found_and_never_outside() {
    let home = written(RUN, &unchanged);
    let tracker = home.path().join("latest_checkpointed_iteration.txt");
    write(&home.path().join("iter_0000009"), RUN, &unchanged);
    let notes = opened(home.path()).notes().join("\n");
    assert!(notes.contains("iter_0000009"), "{notes}");
    for text in ["../elsewhere", "", "-1", "five"] {
        fs::write(&tracker, text).expect("written");
        assert!(
            matches!(
                megatron_fault(home.path()),
                MegatronFault::BadTracker { .. }
            ),
            "{text}"
        );
    }
    fs::write(&tracker, "7").expect("written");
    assert!(matches!(
        megatron_fault(home.path()),
        MegatronFault::NoSuchIteration { .. }
    ));
    fs::rename(
        home.path().join("iter_0000009"),
        home.path().join("release"),
    )
    .expect("moved");
    fs::write(&tracker, "release\n").expect("written");
    is_the_model(&opened(home.path()), RUN);
}
