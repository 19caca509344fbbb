//! Examples to learn from, by number.

use std::path::Path;

use evaluate::datasets::Dataset;
use evaluate::datasets::annotations::{Annotations, Half};
use evaluate::datasets::captions::CaptionSet;
use evaluate::datasets::classes::ClassSet;
use evaluate::datasets::nlvr2::Nlvr2Set;
use evaluate::datasets::texts::TextSet;
use evaluate::datasets::vqa::VqaSet;
use evaluate::images::Rgb;
use evaluate::text::{TextKind, TextRule};

use crate::{Error, Result};

/// One example.
#[derive(Clone, Debug, Default)]
pub struct Example {
    /// One picture, or two.
    pub pictures: Vec<Rgb>,
    /// Its text.
    pub text: String,
    /// The kind of its text: some families rewrite captions or questions.
    pub kind: TextKind,
    /// Answers as classes with soft scores.
    pub answers: Vec<(usize, f32)>,
    /// The same answers in words.
    pub answer_words: Vec<String>,
    /// Its class.
    pub class: Option<u32>,
}

impl Example {
    /// Its texts: its own, and its answers.
    pub fn words(&self) -> impl Iterator<Item = &str> {
        let answers = self.answer_words.iter().map(String::as_str);
        std::iter::once(self.text.as_str()).chain(answers)
    }
}

/// Examples by number.
pub trait Examples: Send + Sync {
    /// The number of examples.
    fn len(&self) -> usize;

    /// The number of an example's image, where examples share images; else its own.
    fn image(&self, index: usize) -> usize {
        index
    }

    /// One more than the largest number of an image.
    fn n_images(&self) -> usize {
        self.len()
    }

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One of them. Pictures are read and decoded only if they are wanted.
    ///
    /// # Errors
    /// When it cannot be read or decoded; file and row are named.
    fn example(&self, index: usize, with_pictures: bool) -> evaluate::Result<Example>;

    /// Looks whether all pictures are there, as far as that takes no decoding.
    ///
    /// # Errors
    /// For the first picture that is not there, with the place that names it.
    fn check_pictures(&self) -> evaluate::Result<()> {
        Ok(())
    }

    /// The number of answers to tell apart, for questions.
    fn n_answers(&self) -> Option<usize> {
        None
    }

    /// The answers by class, where all of them are known.
    fn answers(&self) -> Option<&[String]> {
        None
    }

    /// The names of the classes of images, by number.
    fn classes(&self) -> Option<&[String]> {
        None
    }
}

/// Every caption with its image, or every image once.
struct Pairs {
    set: CaptionSet,
    /// Image and caption.
    pairs: Vec<(u32, Option<u32>)>,
}

impl Pairs {
    fn new(set: CaptionSet) -> Self {
        let of_image = |image: usize| {
            let captions = 0..set.captions(image).len();
            captions.map(move |caption| (image as u32, Some(caption as u32)))
        };
        let pairs = (0..set.n_images()).flat_map(of_image).collect();
        Self { set, pairs }
    }

    /// Pictures alone, for objectives that see no text.
    fn pictures(set: CaptionSet) -> Self {
        let pairs = (0..set.n_images()).map(|image| (image as u32, None));
        Self {
            pairs: pairs.collect(),
            set,
        }
    }
}

impl Examples for Pairs {
    fn len(&self) -> usize {
        self.pairs.len()
    }

    fn image(&self, index: usize) -> usize {
        self.pairs[index].0 as usize
    }

    fn check_pictures(&self) -> evaluate::Result<()> {
        self.set.check_pictures()
    }

    fn n_images(&self) -> usize {
        self.set.n_images()
    }

    fn example(&self, index: usize, with_pictures: bool) -> evaluate::Result<Example> {
        let (image, caption) = self.pairs[index];
        let image = image as usize;
        let caption = caption.map(|caption| self.set.captions(image)[caption as usize].clone());
        let picture = with_pictures.then(|| self.set.picture(image)).transpose()?;
        Ok(Example {
            pictures: picture.into_iter().collect(),
            text: caption.unwrap_or_default(),
            kind: TextKind::Caption,
            ..Example::default()
        })
    }
}

/// Questions with their images.
struct Questions {
    set: VqaSet,
    n_answers: usize,
    /// By class, where all of them are known.
    answers: Option<Vec<String>>,
}

impl Examples for Questions {
    fn len(&self) -> usize {
        self.set.questions().len()
    }

    fn image(&self, index: usize) -> usize {
        self.set.questions()[index].image
    }

    fn check_pictures(&self) -> evaluate::Result<()> {
        self.set.check_pictures()
    }

    fn n_images(&self) -> usize {
        let images = self.set.questions().iter().map(|question| question.image);
        images.max().map_or(0, |last| last + 1)
    }

    fn example(&self, index: usize, with_pictures: bool) -> evaluate::Result<Example> {
        let question = &self.set.questions()[index];
        let picture = with_pictures
            .then(|| self.set.picture(question.image))
            .transpose()?;
        let scores = question.answer_scores.iter().map(|&score| score as f32);
        let labels = question.answer_labels.iter().map(|&label| label as usize);
        Ok(Example {
            pictures: picture.into_iter().collect(),
            text: question.text.clone(),
            kind: TextKind::LearnedQuestion,
            answers: labels.zip(scores).collect(),
            answer_words: question.answers.clone(),
            ..Example::default()
        })
    }

    fn n_answers(&self) -> Option<usize> {
        Some(self.n_answers)
    }

    fn answers(&self) -> Option<&[String]> {
        self.answers.as_deref()
    }
}

/// Statements with their two images.
struct Statements(Nlvr2Set);

impl Examples for Statements {
    fn len(&self) -> usize {
        self.0.statements().len()
    }

    fn check_pictures(&self) -> evaluate::Result<()> {
        self.0.check_pictures()
    }

    fn example(&self, index: usize, with_pictures: bool) -> evaluate::Result<Example> {
        let statement = &self.0.statements()[index];
        let pictures = match with_pictures {
            true => vec![
                self.0.picture(statement.pair, 0)?,
                self.0.picture(statement.pair, 1)?,
            ],
            false => Vec::new(),
        };
        Ok(Example {
            pictures,
            text: statement.sentence.clone(),
            kind: TextKind::Statement,
            class: statement.label.map(u32::from),
            ..Example::default()
        })
    }
}

/// Texts alone.
struct Texts(TextSet);

impl Examples for Texts {
    fn len(&self) -> usize {
        self.0.texts().len()
    }

    fn example(&self, index: usize, _: bool) -> evaluate::Result<Example> {
        Ok(Example {
            text: self.0.texts()[index].clone(),
            ..Example::default()
        })
    }
}

/// Rows of a CSV file, each with its picture.
struct Rows(Annotations);

impl Examples for Rows {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn image(&self, index: usize) -> usize {
        self.0.images()[index] as usize
    }

    fn n_images(&self) -> usize {
        self.0
            .images()
            .iter()
            .max()
            .map_or(0, |&last| last as usize + 1)
    }

    fn check_pictures(&self) -> evaluate::Result<()> {
        self.0.check_pictures()
    }

    fn example(&self, index: usize, with_pictures: bool) -> evaluate::Result<Example> {
        let picture = with_pictures.then(|| self.0.picture(index)).transpose()?;
        Ok(Example {
            pictures: picture.into_iter().collect(),
            text: self.0.annotation(index)?.caption,
            kind: TextKind::Caption,
            ..Example::default()
        })
    }
}

/// Pictures of classes.
struct Classified(ClassSet);

impl Examples for Classified {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn example(&self, index: usize, with_pictures: bool) -> evaluate::Result<Example> {
        let picture = with_pictures.then(|| self.0.picture(index)).transpose()?;
        Ok(Example {
            pictures: picture.into_iter().collect(),
            class: Some(self.0.class(index)? as u32),
            ..Example::default()
        })
    }

    fn classes(&self) -> Option<&[String]> {
        Some(self.0.classes())
    }
}

/// Opens a folder for each class of a split of a data set.
///
/// # Errors
/// As [`ClassSet::open`].
pub fn open_classes(folder: &Path, dataset: &str, split: &str) -> Result<Box<dyn Examples>> {
    let set = ClassSet::open(folder, dataset, split)?;
    Ok(Box::new(Classified(set)))
}

/// Opens packed files of a split of a data set: shards of a webdataset, or parquet files. Captions come as
/// [`open`]'s, where an objective `sees_text` and there are some; classes otherwise.
///
/// # Errors
/// As [`Dataset::open_packed`].
pub fn open_packed(
    folder: &Path,
    dataset: &str,
    split: &str,
    repeats: Option<TextRule>,
    sees_text: bool,
) -> Result<Box<dyn Examples>> {
    let set = Dataset::open_packed(folder, dataset, split, sees_text)?;
    Ok(match set {
        Dataset::Captions(set) => of_captions(set, repeats, sees_text),
        Dataset::Classes(set) => Box::new(Classified(set)),
        // These come from files of their own names.
        Dataset::Questions(_) | Dataset::Statements(_) | Dataset::Texts(_) => {
            return Err(Error::NoLabels {
                dataset: dataset.into(),
                split: split.into(),
            });
        }
    })
}

/// Opens `train_anno.csv` or `valid_anno.csv` of a data set in a folder.
///
/// # Errors
/// When a file is not there or a row is not as it should be; file, line and column are named.
pub fn open_annotations(folder: &Path, dataset: &str, split: &str) -> Result<Box<dyn Examples>> {
    let half = Half::of(split).ok_or_else(|| Error::BadSetting {
        key: "data.train".into(),
        reason: format!("`{split}` is no split of CSV files; there are train and valid"),
    })?;
    let set = Annotations::open(folder, dataset, half)?;
    Ok(Box::new(Rows(set)))
}

/// Several data sets, one after the other.
pub struct Joined {
    parts: Vec<Box<dyn Examples>>,
    /// Images of each.
    n_images: Vec<usize>,
}

impl Joined {
    /// Of data sets that hold the same kind of examples.
    ///
    /// # Errors
    /// [`Error::BadSetting`] when they do not have the same classes.
    pub fn new(parts: Vec<Box<dyn Examples>>) -> Result<Self> {
        let mut classes = parts.iter().map(|part| part.classes());
        let first = classes.next().flatten();
        if let Some(other) = classes.find(|other| *other != first) {
            let n = |classes: Option<&[String]>| classes.map_or(0, <[String]>::len);
            let (first, other) = (n(first), n(other));
            return Err(Error::BadSetting {
                key: "data.train".into(),
                reason: format!(
                    "its sets must have the same classes, but one has {first} and another {other}, or \
                     they have other names"
                ),
            });
        }
        let n_images = parts.iter().map(|part| part.n_images()).collect();
        Ok(Self { parts, n_images })
    }

    /// The number of examples of each.
    #[must_use]
    pub fn lengths(&self) -> Vec<usize> {
        self.parts.iter().map(|part| part.len()).collect()
    }
}

impl Examples for Joined {
    fn len(&self) -> usize {
        self.parts.iter().map(|part| part.len()).sum()
    }

    fn image(&self, mut index: usize) -> usize {
        let mut before = 0;
        for (part, n_images) in self.parts.iter().zip(&self.n_images) {
            if index < part.len() {
                return before + part.image(index);
            }
            index -= part.len();
            before += n_images;
        }
        before + index
    }

    fn check_pictures(&self) -> evaluate::Result<()> {
        (self.parts.iter()).try_for_each(|part| part.check_pictures())
    }

    fn n_images(&self) -> usize {
        self.n_images.iter().sum()
    }

    fn example(&self, mut index: usize, with_pictures: bool) -> evaluate::Result<Example> {
        for part in &self.parts {
            if index < part.len() {
                return part.example(index, with_pictures);
            }
            index -= part.len();
        }
        Ok(Example::default())
    }

    fn n_answers(&self) -> Option<usize> {
        self.parts.iter().filter_map(|part| part.n_answers()).max()
    }

    fn answers(&self) -> Option<&[String]> {
        self.parts.iter().find_map(|part| part.answers())
    }

    fn classes(&self) -> Option<&[String]> {
        self.parts.first()?.classes()
    }
}

/// Opens a split of a data set in a folder of arrow or JSON files for training. Captions come with their
/// images, without those that the image has already as a model of the rule `repeats` reads them; where no
/// objective `sees_text`, each image comes once.
///
/// # Errors
/// When there is no such data set or split, a file is damaged, or examples have no labels.
pub fn open(
    folder: &Path,
    dataset: &str,
    split: &str,
    repeats: Option<TextRule>,
    sees_text: bool,
) -> Result<Box<dyn Examples>> {
    let unlabelled = || Error::NoLabels {
        dataset: dataset.into(),
        split: split.into(),
    };
    Ok(match Dataset::open(folder, dataset, split)? {
        Dataset::Questions(set) => {
            let labels = set.questions().iter().flat_map(|q| &q.answer_labels);
            if let Some(&label) = labels.clone().find(|label| **label < 0) {
                return Err(Error::NegativeLabel { label });
            }
            // The classes are those of all files, not of this split alone.
            let known = set.label_answers(folder)?;
            let largest = labels.max().copied().max(known.keys().last().copied());
            let n_answers = largest.ok_or_else(unlabelled)? as usize + 1;
            let answers: Vec<String> = known.into_values().collect();
            Box::new(Questions {
                set,
                n_answers,
                // Classes without gaps are in the order of their labels.
                answers: (answers.len() == n_answers).then_some(answers),
            })
        }
        Dataset::Statements(set) => {
            if set.statements().iter().any(|s| s.label.is_none()) {
                return Err(unlabelled());
            }
            Box::new(Statements(set))
        }
        Dataset::Texts(set) => Box::new(Texts(set)),
        Dataset::Classes(set) => Box::new(Classified(set)),
        Dataset::Captions(set) => of_captions(set, repeats, sees_text),
    })
}

fn of_captions(set: CaptionSet, repeats: Option<TextRule>, sees_text: bool) -> Box<dyn Examples> {
    if !sees_text {
        return Box::new(Pairs::pictures(set));
    }
    Box::new(Pairs::new(match repeats {
        Some(rule) => set.without_repeats_as(|caption| rule.apply(caption)).0,
        None => set,
    }))
}
