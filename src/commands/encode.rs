//! `vlmerge encode`.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Instant, UNIX_EPOCH};

use anyhow::{Context, Result};
use evaluate::datasets::captions::CaptionSet;
use evaluate::encode::{self, Container, Embeddings, Encoder, Rows};
use evaluate::measure::key_of;
use evaluate::text::Tokenizer;
use merge::provenance::Hashes;
use serde_json::json;

use crate::args::model::ModelArgs;
use crate::output::{Output, UsageError};
use crate::target::Target;

const EXAMPLES: &str = "\
Examples:
  vlmerge encode model.safetensors --images photos --out photos.safetensors
  vlmerge encode model.safetensors --texts queries.txt --tokenizer vocab.txt --out queries.npy
  vlmerge encode model.safetensors --data arrow --dataset coco --split test --out coco.safetensors

Rows are features of length one, in f32. Pictures come in the order of their paths, texts in that of
their lines, data sets in that of their files. The ids are in the metadata of a .safetensors file,
as JSON lists, and beside a .npy file in <name>.ids.json. The scalar product of two rows is their
similarity.

Each finished batch is kept. Start a stopped or killed run again with the same flags, and it goes
on.";

/// Flags of `vlmerge encode`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A checkpoint of any family that encodes images and texts apart
    #[arg(value_name = "CHECKPOINT")]
    checkpoint: PathBuf,
    /// One picture, or a folder of pictures and of further folders
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// A UTF-8 file with one text per line
    #[arg(long, value_name = "FILE")]
    texts: Option<PathBuf>,
    /// A folder of data sets, to encode the pictures and texts of one split
    #[arg(long, value_name = "DIR", conflicts_with_all = ["images", "texts"])]
    data: Option<PathBuf>,
    /// Data set in that folder
    #[arg(long, value_name = "NAME", default_value = "coco", requires = "data")]
    dataset: String,
    /// Part of the data set
    #[arg(long, value_name = "NAME", default_value = "test", requires = "data")]
    split: String,
    /// Tokenizer: a vocab.txt or tokenizer.json, a folder with one, or a name on the hub
    #[arg(long, value_name = "NAME", default_value = "bert-base-uncased")]
    tokenizer: String,
    /// The file to write: .safetensors, or .npy for pictures or texts alone
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Replace an existing target
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    model: ModelArgs,
}

/// Decodes the picture of a number.
type Picture = Box<dyn Fn(usize) -> evaluate::Result<evaluate::images::Rgb> + Send + Sync>;

/// The pictures or texts to encode.
#[derive(Default)]
struct Input {
    pictures: Option<(Vec<String>, Picture)>,
    texts: Option<(Vec<String>, Vec<String>)>,
    /// The image of each text, where texts have one.
    image_of_text: Option<Vec<i64>>,
    /// Stands for the content of the pictures: sizes and times of their files.
    content: Vec<(u64, u128)>,
}

/// Runs the verb.
pub fn run(args: &Args, output: &Output) -> Result<ExitCode> {
    let container = Container::of(&args.out).ok_or_else(|| {
        let out = args.out.display();
        UsageError(format!("--out {out}: end it in .safetensors or .npy"))
    })?;
    let input = args.input(output)?;
    let n_kinds = usize::from(input.pictures.is_some()) + usize::from(input.texts.is_some());
    if n_kinds == 0 {
        return Err(UsageError("give --images, --texts or --data".into()).into());
    }
    if container == Container::Npy && n_kinds > 1 {
        let what =
            "a .npy file holds one array; end --out in .safetensors, or encode one at a time";
        return Err(UsageError(what.into()).into());
    }
    merge::io::check_file_target(&args.out, args.force)?;
    let device = args.model.device()?;
    let found = Target::File(args.checkpoint.clone()).find(&Hashes::default(), output)?;
    let opened = found.open(&args.model, output)?;
    let model = opened.load(&args.model, &device, output)?;
    let encoder = Encoder {
        model: model.as_ref(),
        device: &device,
        dtype: args.model.precision.dtype(),
        batch_size: args.model.batch_size,
        progress: output,
    };
    let started = Instant::now();
    let key = |of: &str, more: serde_json::Value| {
        key_of(&json!({
            "of": of,
            "weights": opened.record.files,
            "settings": opened.settings,
            "model": args.model.identity(),
            "batch_size": args.model.batch_size,
            "input": more,
        }))
    };
    let mut all = Vec::new();
    if let Some((ids, picture)) = input.pictures {
        let key = key("images", json!([ids, input.content]));
        let mut rows = args.rows("images", &key, ids.len(), output)?;
        let done = encode::images(&encoder, ids.len(), picture, &mut rows);
        args.keep(done, &rows, ids.len(), output)?;
        all.push(Embeddings {
            name: "image_features",
            ids,
            rows,
        });
    }
    if let Some((ids, texts)) = input.texts {
        let tokenizer = Tokenizer::open(&args.tokenizer)?;
        let vocabulary = std::fs::read(tokenizer.path());
        let path = || format!("cannot read {}", tokenizer.path().display());
        let key = key(
            "texts",
            json!([texts, key_of(&vocabulary.with_context(path)?)]),
        );
        let mut rows = args.rows("texts", &key, ids.len(), output)?;
        let done = encode::texts(&encoder, &tokenizer, &texts, &mut rows);
        args.keep(done, &rows, ids.len(), output)?;
        all.push(Embeddings {
            name: "text_features",
            ids,
            rows,
        });
    }
    let metadata = BTreeMap::from([
        (
            "checkpoint".to_owned(),
            json!(opened.record.files).to_string(),
        ),
        ("layout".to_owned(), opened.record.layout.clone()),
        (
            "image_size".to_owned(),
            model.input().image.side.to_string(),
        ),
        ("vlmerge".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
    ]);
    let shapes: Vec<(&str, [usize; 2])> = (all.iter())
        .map(|e| (e.name, [e.rows.n_rows(), e.rows.width()]))
        .collect();
    match container {
        Container::Safetensors => Embeddings::write_safetensors(
            &mut all,
            input.image_of_text.as_deref(),
            metadata,
            &args.out,
            args.force,
        )?,
        Container::Npy => {
            for embeddings in &mut all {
                let ids = embeddings.write_npy(&args.out, args.force)?;
                output.note(format!("ids: {}", ids.display()));
            }
        }
    }
    for embeddings in all {
        embeddings.rows.remove()?;
    }
    let seconds = started.elapsed().as_secs_f64();
    if output.json {
        let shapes: BTreeMap<_, _> = shapes.into_iter().collect();
        output.json(&json!({ "file": args.out, "shapes": shapes, "seconds": seconds }))?;
        return Ok(ExitCode::SUCCESS);
    }
    for (name, [n, width]) in shapes {
        let out = args.out.display();
        output.line(format!("{out}: {name}: {n} x {width} in {seconds:.1} s"))?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Args {
    /// Opens the pictures or texts.
    fn input(&self, output: &Output) -> Result<Input> {
        let mut input = Input::default();
        if let Some(path) = &self.images {
            let (found, n_others) = evaluate::images::list(path)?;
            if n_others > 0 {
                output.note(format!(
                    "{}: {n_others} files do not end like pictures and are passed over",
                    path.display()
                ));
            }
            for (_, path) in &found {
                let failed = || format!("cannot read {}", path.display());
                let metadata = std::fs::metadata(path).with_context(failed)?;
                input.content.push(stamp(&metadata));
            }
            let (ids, paths): (Vec<String>, Vec<PathBuf>) = found.into_iter().unzip();
            let picture = move |index: usize| evaluate::images::open(&paths[index]);
            input.pictures = Some((ids, Box::new(picture)));
        }
        if let Some(path) = &self.texts {
            let texts = encode::lines(path)?;
            let ids = (1..=texts.len()).map(|line| line.to_string());
            input.texts = Some((ids.collect(), texts));
        }
        if let Some(folder) = &self.data {
            let set = CaptionSet::open(folder, &self.dataset, &self.split)?;
            let images = 0..set.n_images();
            let ids = images.clone().map(|image| set.image_id(image).to_owned());
            let texts = images
                .clone()
                .flat_map(|image| set.captions(image).to_vec());
            let of_text = images
                .flat_map(|image| std::iter::repeat_n(image as i64, set.captions(image).len()));
            let (texts, of_text): (Vec<String>, Vec<i64>) = (texts.collect(), of_text.collect());
            let text_ids = (0..texts.len()).map(|text| text.to_string());
            input.texts = Some((text_ids.collect(), texts));
            input.image_of_text = Some(of_text);
            let ids = ids.collect();
            input.pictures = Some((ids, Box::new(move |image| set.picture(image))));
            input.content = content(folder)?;
        }
        Ok(input)
    }

    /// The rows that an earlier run has left, and says how many there are.
    fn rows(&self, of: &str, key: &str, n: usize, output: &Output) -> Result<Rows> {
        let name = self.out.file_name().unwrap_or_default().to_string_lossy();
        let path = self.out.with_file_name(format!(".{name}.{of}.unfinished"));
        let rows = Rows::open(&path, key, self.model.batch_size)?;
        if rows.n_rows() > 0 {
            output.note(format!("going on after {} of {n} {of}", rows.n_rows()));
        }
        Ok(rows)
    }

    /// Says which rows of a stopped run are kept.
    fn keep(
        &self,
        done: evaluate::Result<()>,
        rows: &Rows,
        n: usize,
        output: &Output,
    ) -> Result<()> {
        if done.is_err() && rows.n_rows() > 0 {
            output.note(format!(
                "{} of {n} rows are kept for the next run",
                rows.n_rows()
            ));
        }
        Ok(done?)
    }
}

/// Sizes and times of the files of a folder.
fn content(folder: &Path) -> Result<Vec<(u64, u128)>> {
    let failed = || format!("{}: cannot list", folder.display());
    let mut content = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(failed)? {
        let entry = entry.with_context(failed)?;
        content.push(stamp(&entry.metadata().with_context(failed)?));
    }
    content.sort_unstable();
    Ok(content)
}

/// Size and time of a file, which tell whether it has changed.
fn stamp(metadata: &Metadata) -> (u64, u128) {
    let time = metadata.modified().ok();
    let since = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    (metadata.len(), since.map_or(0, |since| since.as_nanos()))
}
