//! Pictures with a class each: in a folder for each class, in shards of a webdataset, in parquet files.

mod folders;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::class_texts::ClassTexts;
use super::facts::FileFacts;
use super::left_out::Omission;
use super::packed::{CLASS_NAMES, Packed, note};
use super::pictures::is_inside;
use super::splits::Tables;
use crate::images::{self, Rgb};
use crate::{DataFault, Error, Result};

/// The key of a checkpoint's metadata that holds the names of the classes of its head, a JSON list.
pub const CLASSES: &str = "vlmerge.classes";

/// The pictures of a split, each of one class.
#[derive(Debug)]
pub struct ClassSet {
    path: PathBuf,
    classes: Vec<String>,
    /// Whether something names them.
    is_named: bool,
    images: Vec<Image>,
    source: Source,
}

/// The source of pictures.
#[derive(Debug)]
enum Source {
    /// Files in a folder for each class, and how many others are there.
    Folders { n_others: usize },
    /// Rows of files.
    Packed { packed: Packed, tables: Tables },
}

/// A picture and its class.
#[derive(Debug)]
struct Image {
    /// Its path within the split's folder, its key, or its file and row.
    name: String,
    place: Place,
    class: usize,
}

/// The place of a picture.
#[derive(Debug)]
enum Place {
    File(PathBuf),
    Row(usize),
}

impl ClassSet {
    /// Opens a split such as `val` of a data set in a folder: a folder for each class, or packed files (see
    /// [`packed`](super::packed)). Pictures of folders come class by class, by their paths; those of files in the
    /// order of files and rows.
    ///
    /// Classes of shards are named by `classnames.txt`, those of parquet files by the type that the library `datasets`
    /// notes, or by that file; or else by their numbers.
    ///
    /// # Errors
    /// [`DataFault::DatasetName`] for a name that leads out of the folder; [`DataFault::Classes`] when a class has no
    /// picture or a picture no class; an error with file and row for a class beyond the last; [`Error::Empty`]; and when
    /// a file is damaged or a folder cannot be listed.
    pub fn open(folder: &Path, dataset: &str, split: &str) -> Result<Self> {
        let outside = [dataset, split].into_iter().find(|name| !is_inside(name));
        if let Some(name) = outside {
            return Err(Error::Data(DataFault::DatasetName { name: name.into() }));
        }
        let path = folder.join(dataset).join(split);
        if !folders::has_folders(&path)
            && let Some(packed) = Packed::find(folder, dataset, split)?
        {
            let tables = Tables::of_packed(&packed)?;
            return Self::of_packed(packed, tables);
        }
        folders::open(&path)
    }

    /// The rows of packed files.
    ///
    /// # Errors
    /// As [`open`](Self::open)'s.
    pub(super) fn of_packed(packed: Packed, tables: Tables) -> Result<Self> {
        tables.check_rows("pictures with classes")?;
        let (mut labels, mut names) = (Vec::new(), Vec::new());
        for table in tables.iter() {
            labels.extend(table.labels()?);
            let file = table.path().file_name().unwrap_or_default();
            let file = file.to_string_lossy();
            // Keys may come again in another shard.
            match table.has("image_id") {
                true => names.extend(
                    table
                        .ids("image_id")?
                        .iter()
                        .map(|id| format!("{file}/{id}")),
                ),
                false => names.extend((0..table.n_rows()).map(|row| format!("{file}/{row}"))),
            }
        }
        let (labels, names) = (tables.that_count(labels), tables.that_count(names));
        let named = class_names(&packed, &tables)?;
        let is_named = named.is_some();
        let classes = named.unwrap_or_else(|| numbers(&labels));
        let n_classes = classes.len();
        let images = labels.into_iter().zip(names).enumerate();
        let images = images.map(|(row, (label, name))| {
            let class = usize::try_from(label).ok();
            let class = class.filter(|class| *class < n_classes).ok_or_else(|| {
                let known = match n_classes {
                    0 => "no class is known".to_owned(),
                    n => format!("classes are 0 to {}", n - 1),
                };
                let fault = format!("its class is {label}, but {known}");
                tables.row_fault(row, fault)
            })?;
            let place = Place::Row(row);
            Ok(Image { name, place, class })
        });
        Ok(Self {
            path: packed.folder().to_owned(),
            classes: distinct(classes),
            is_named,
            images: images.collect::<Result<_>>()?,
            source: Source::Packed { packed, tables },
        })
    }

    /// Number of pictures.
    #[must_use]
    pub fn len(&self) -> usize {
        self.images.len()
    }

    /// Whether there are none, which [`open`](Self::open) refuses.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.images.is_empty()
    }

    /// The folder of the split, or of the data set of packed files.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of the classes, by number.
    #[must_use]
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// The texts of the classes, by the files in the folder of the data set (see [`ClassTexts`]).
    ///
    /// # Errors
    /// As [`ClassTexts::open`]; [`DataFault::Packed`] for classes of packed files that nothing names.
    pub fn texts(&self, folder: &Path) -> Result<ClassTexts> {
        let [names_of, ..] = ClassTexts::FILES;
        if !self.is_named && note(&folder.join(names_of))?.is_none() {
            let fault = format!(
                "its classes have numbers, but nothing names them; write {CLASS_NAMES} there, the name of a class a line"
            );
            return Err(Error::Data(DataFault::Packed {
                path: folder.into(),
                fault,
            }));
        }
        ClassTexts::open(folder, &self.classes)
    }

    /// `n` pictures, as even over the classes as can be: the first of each class, then the second, and so
    /// on. Their order and all classes stay.
    #[must_use]
    pub fn evenly(mut self, n: usize) -> Self {
        let mut n_seen = vec![0_usize; self.classes.len()];
        let turn = |image: &Image| {
            let of_class = n_seen.get_mut(image.class)?;
            *of_class += 1;
            Some((*of_class, image.class))
        };
        let turns: Vec<_> = self.images.iter().map(turn).collect();
        let mut sorted = turns.clone();
        sorted.sort_unstable();
        if let Some(end) = sorted.get(n) {
            let mut turns = turns.iter();
            self.images
                .retain(|_| turns.next().is_some_and(|turn| turn < end));
        }
        self
    }

    /// The number of a picture's class.
    ///
    /// # Errors
    /// [`DataFault::NoSuchRow`].
    pub fn class(&self, index: usize) -> Result<usize> {
        Ok(self.entry(index)?.class)
    }

    /// The name of a picture: its path within the split's folder; or its file with its key, its id, or its row.
    ///
    /// # Errors
    /// [`DataFault::NoSuchRow`].
    pub fn name(&self, index: usize) -> Result<&str> {
        Ok(&self.entry(index)?.name)
    }

    /// A decoded picture.
    ///
    /// # Errors
    /// [`DataFault::NoSuchRow`], and with the file when it cannot be read, is too large or damaged.
    pub fn picture(&self, index: usize) -> Result<Rgb> {
        match (&self.entry(index)?.place, &self.source) {
            (Place::File(path), _) => images::open(path),
            (Place::Row(row), Source::Packed { tables, .. }) => tables.picture("image", *row),
            (Place::Row(row), Source::Folders { .. }) => Err(Error::Data(DataFault::NoSuchRow {
                row: *row,
                n_rows: 0,
            })),
        }
    }

    /// The omissions: files without the ending of a picture, and members of shards.
    ///
    /// # Errors
    /// When a file's note of it is damaged.
    pub fn left_out(&self) -> Result<Vec<Omission>> {
        let n_others = match &self.source {
            Source::Packed { tables, .. } => return tables.left_out(),
            Source::Folders { n_others } => *n_others,
        };
        let omission = Omission {
            what: "files".into(),
            why: "no ending of a picture's name".into(),
            n: n_others,
            of: n_others + self.len(),
            ids: Vec::new(),
            file: self.path.display().to_string(),
        };
        Ok(match n_others {
            0 => Vec::new(),
            _ => vec![omission],
        })
    }

    /// Facts about the pictures of each class, or about each packed file: what tells this split from another.
    ///
    /// # Errors
    /// When a file is gone.
    pub fn facts(&self) -> Result<Vec<FileFacts>> {
        if let Source::Packed { packed, .. } = &self.source {
            return packed.facts();
        }
        let mut pictures = vec![Vec::new(); self.classes.len()];
        for image in &self.images {
            if let (Place::File(path), Some(of_class)) =
                (&image.place, pictures.get_mut(image.class))
            {
                of_class.push((image.name.as_str(), path.as_path()));
            }
        }
        let classes = self.classes.iter().zip(pictures);
        classes
            .map(|(class, pictures)| FileFacts::of_pictures(class, pictures))
            .collect()
    }

    fn entry(&self, index: usize) -> Result<&Image> {
        self.images.get(index).ok_or_else(|| {
            Error::Data(DataFault::NoSuchRow {
                row: index,
                n_rows: self.len(),
            })
        })
    }
}

/// The most classes without names, unless there are more pictures.
const MAX_UNNAMED: usize = 1 << 16;

/// The names of the classes by number: of the files, or of `classnames.txt`.
fn class_names(packed: &Packed, tables: &Tables) -> Result<Option<Vec<String>>> {
    let mut found: Option<Vec<String>> = None;
    for table in tables.iter() {
        let Some(names) = table.class_names()? else {
            continue;
        };
        if found.as_ref().is_some_and(|found| *found != names) {
            return Err(table.fault("its classes are other than those of the files before it"));
        }
        found = Some(names);
    }
    match found {
        Some(names) => Ok(Some(names)),
        None => packed.class_names(),
    }
}

/// The numbers of classes without names.
fn numbers(labels: &[i64]) -> Vec<String> {
    let last = labels
        .iter()
        .filter_map(|label| usize::try_from(*label).ok());
    let n = last.max().map_or(0, |last| last.saturating_add(1));
    // A label beyond them is an error of its row.
    let n = n.min(MAX_UNNAMED.max(labels.len()));
    (0..n).map(|number| number.to_string()).collect()
}

/// Names of which none is there twice: those that are have their numbers behind.
fn distinct(names: Vec<String>) -> Vec<String> {
    let mut n_times: BTreeMap<String, usize> = BTreeMap::new();
    for name in &names {
        *n_times.entry(name.clone()).or_default() += 1;
    }
    let names = names.into_iter().enumerate();
    let names = names.map(|(number, name)| match n_times.get(&name) {
        Some(1) => name,
        _ => format!("{name} ({number})"),
    });
    names.collect()
}
