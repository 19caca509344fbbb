//! Any bytes as OpenAI's list of merges, packed or not, and as the names and templates of classes: opened and used, or
//! refused.
#![no_main]

use evaluate::datasets::class_texts::ClassTexts;
use evaluate::text::Tokenizer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let folder = std::env::temp_dir().join(format!("vlmerge-fuzz-clip-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    for name in ClassTexts::FILES.into_iter().chain(["bpe_simple_vocab_16e6.txt.gz"]) {
        std::fs::write(folder.join(name), bytes).expect("written");
    }
    let classes = ["a".to_owned(), "b".to_owned()];
    let _ = ClassTexts::open(&folder, &classes);
    let list = folder.join("bpe_simple_vocab_16e6.txt.gz");
    if let Ok(tokenizer) = Tokenizer::open(&list.to_string_lossy()) {
        for text in ["", "a red bird's", "\u{1f426}\u{0301} &amp;amp; x"] {
            if let Ok(encoded) = tokenizer.encode(text, 16) {
                assert_eq!(encoded.ids.len(), 16);
            }
        }
    }
});
