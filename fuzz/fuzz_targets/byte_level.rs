//! Any bytes as the two files of a byte-level vocabulary, apart by the first zero: opened and used on short
//! texts, or refused. The first byte says whether the ids are a `vocab.json` or a `dict.txt`.
#![no_main]

use evaluate::text::Tokenizer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else {
        return;
    };
    let at = bytes.iter().position(|&byte| byte == 0);
    let (ids, merges) = bytes.split_at(at.unwrap_or(bytes.len()));
    let folder = std::env::temp_dir().join(format!("vlmerge-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let names = ["vocab.json", "dict.txt"];
    let name = names[usize::from(kind % 2)];
    // The other kind would be taken first.
    names.iter().for_each(|name| drop(std::fs::remove_file(folder.join(name))));
    std::fs::write(folder.join(name), ids).expect("written");
    let merges = merges.strip_prefix(b"\0").unwrap_or(merges);
    std::fs::write(folder.join("merges.txt"), merges).expect("written");
    if let Ok(tokenizer) = Tokenizer::open(&folder.to_string_lossy()) {
        drop(tokenizer.word_boundaries());
        for text in ["", "a red bird's", "\u{1f426}\u{0301} <mask> x"] {
            if let Ok(encoded) = tokenizer.encode(text, 16) {
                assert_eq!(encoded.ids.len(), 16);
                drop(tokenizer.decode(&encoded.ids));
            }
        }
    }
});
