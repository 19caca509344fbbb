//! Torch files of the corpus of which more is known than its manifest says.

use merge::io::OpenOptions;

use crate::golden::torch_corpus::load;

#[test]
fn a_file_that_calls_a_function_is_refused_by_its_name() {
    for (file, callable) in [
        ("exec_os_system.pt", "posix.system"),
        ("exec_builtins_eval.pt", "builtins.eval"),
        ("exec_py2_builtin.pt", "__builtin__.exec"),
        ("exec_subprocess.pt", "subprocess.check_output"),
        ("exec_getattr_chain.pt", "builtins.getattr"),
        ("exec_raw_pickle.pt", "posix.system"),
        ("exec_legacy_os_system.pt", "posix.system"),
        ("exec_legacy_in_sysinfo.pt", "posix.system"),
    ] {
        let path = fixtures::path("corpus/torch/hostile").join(file);
        let error = load(&path).expect_err("hostile");
        assert!(
            matches!(&error, merge::Error::Torch(merge::TorchFault::UnsafePickle { calls, .. }) if calls[0].callable == callable),
            "{file}: {error}"
        );
        assert!(error.to_string().contains(callable), "{error}");
    }
}

#[test]
fn the_weights_of_a_lightning_file_are_its_state_dict() {
    let path = fixtures::path("corpus/torch/valid/zip_lightning.ckpt");
    let checkpoint = merge::io::open(&path, &OpenOptions::default()).expect("valid");
    assert_eq!(checkpoint.info().root, "state_dict");
    assert!(checkpoint.get("lin.weight").is_some());
    assert!(checkpoint.get("state_dict.lin.weight").is_none());
    let opaque: Vec<&str> = (checkpoint.info().opaque.iter())
        .map(|object| object.callable.as_str())
        .collect();
    assert!(opaque.contains(&"vilt.ufo.config.UFOConfig"), "{opaque:?}");

    let options = OpenOptions {
        root: Some("optimizer_states.0.state".into()),
        ..OpenOptions::default()
    };
    let moments = merge::io::open(&path, &options).expect("this root exists");
    assert!(moments.get("0.exp_avg").is_some());

    let options = OpenOptions {
        root: Some("weights".into()),
        ..OpenOptions::default()
    };
    let error = merge::io::open(&path, &options)
        .err()
        .expect("no such root");
    assert!(error.to_string().contains("`state_dict`"), "{error}");
}
