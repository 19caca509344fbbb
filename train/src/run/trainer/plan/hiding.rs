//! The patches and signals that objectives hide, and the tokenizer whose tokens stand for them.

use std::path::PathBuf;
use std::sync::Arc;

use candle_core::DType;
use evaluate::models::{Dvae, Head};
use evaluate::text::Tokenizer;
use merge::io::OpenOptions;

use crate::augment::{PatchMasking, TokenKinds};
use crate::data::{Patches, SignalMasking};
use crate::objectives::Needs;
use crate::recipe::{ImageMasking, TrainRecipe};
use crate::run::Start;
use crate::run::trainer::Where;
use crate::{Error, Result};

/// The tokenizer of images, if an objective guesses their tokens, and its files.
pub(super) fn image_tokenizer(
    recipe: &TrainRecipe,
    needs: Needs,
    place: &Where<'_>,
) -> Result<(Option<Arc<Dvae>>, Vec<PathBuf>)> {
    let Some(masking) = (recipe.image_masking.as_ref()).filter(|_| needs.masked_patches) else {
        return Ok((None, Vec::new()));
    };
    let checkpoint = merge::io::open(&masking.tokenizer, &OpenOptions::default())?;
    let files = checkpoint.info().files.iter();
    let files = files.map(|file| file.path.clone()).collect();
    let weights = Dvae::weights(Arc::new(checkpoint), &place.device, DType::F32)?;
    Ok((Some(Arc::new(Dvae::load(&weights)?)), files))
}

/// The rule that masks patches, and the size of the view in which each patch has one token.
pub(super) fn patches(tokenizer: &Dvae, masking: &ImageMasking, start: &Start) -> Result<Patches> {
    let n_classes = start.model.n_classes(Head::MaskedImage)?;
    if n_classes != tokenizer.vocabulary() {
        let known = tokenizer.vocabulary();
        return Err(Error::OtherImageTokens { known, n_classes });
    }
    let side = start.blueprint.patch_side();
    let side = side.ok_or_else(|| start.model.cannot("guess hidden patches"))?;
    let mut drawn = PatchMasking::new(side);
    if let Some(share) = masking.share {
        drawn = drawn.with_share(share);
    }
    if let Some(least) = masking.least_block {
        drawn.least = least;
    }
    Ok(Patches {
        masking: drawn,
        target_side: side * tokenizer.stride(),
    })
}

/// The settings by which masked signal modeling hides patches and words.
pub(super) fn signals(
    recipe: &TrainRecipe,
    needs: Needs,
    start: &Start,
    tokenizer: Option<&Tokenizer>,
) -> Result<Option<SignalMasking>> {
    let Some(tokenizer) = tokenizer.filter(|_| needs.masked_signals) else {
        return Ok(None);
    };
    let side = start.blueprint.patch_side();
    let mut settings = recipe.objectives.iter().filter_map(|of| of.signal);
    let masking = SignalMasking {
        settings: settings.next().unwrap_or_default(),
        side: side.ok_or_else(|| start.model.cannot("guess hidden patches"))?,
        kinds: TokenKinds::read(tokenizer, false)?,
    };
    match masking.n_hidden() {
        0 => Err(Error::BadSetting {
            key: "objectives.signal.image_ratio".into(),
            reason: "it hides no patch of so few".into(),
        }),
        _ => Ok(Some(masking)),
    }
}
