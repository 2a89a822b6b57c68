//! Where a model's weights come from, one segment at a time: memory, or a folder read when a segment is needed.
//!
//! Memory grows with a segment and not with the model: a stored model keeps the segments used last within a bound and reads
//! the others again. What is read again must be what was read first.

use crate::check::Checker;
use crate::recent::Recent;
use crate::store::{DIGEST, StoreError, read_descriptor, read_segment, segment_path};
use crate::weights::{IntegerModel, SegmentWeights, Weights};
use obelysk_protocol::circuit::descriptor::Descriptor;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// Weights kept in memory unless a setting says otherwise: small models whole, a few segments of large ones.
pub const WEIGHT_BYTES: usize = 4 << 30;

/// A model whose weights are asked for segment by segment.
pub trait WeightSource: Send + Sync {
    /// Dimensions, scales, tables.
    fn descriptor(&self) -> &Descriptor;
    /// Segments there are.
    fn segments(&self) -> usize;
    /// The weights of a segment.
    ///
    /// # Errors
    /// [`StoreError::Index`] past the last one; otherwise files that cannot be read, are damaged, or have changed.
    fn segment(&self, index: usize) -> Result<Segment<'_>, StoreError>;

    /// Number of weights, found by reading all of them.
    ///
    /// # Errors
    /// As [`Self::segment`].
    fn cells(&self) -> Result<usize, StoreError> {
        (0..self.segments()).map(|i| Ok(cells(&*self.segment(i)?))).sum()
    }

    /// All weights at once, for work that cannot go segment by segment.
    ///
    /// # Errors
    /// As [`Self::segment`].
    fn all(&self) -> Result<Weights, StoreError> {
        let segments = (0..self.segments()).map(|i| Ok((*self.segment(i)?).clone()));
        Ok(Weights { segments: segments.collect::<Result<_, StoreError>>()? })
    }
}

/// Weights of a segment; a weight is a byte.
fn cells(segment: &SegmentWeights) -> usize {
    segment.matrices.iter().map(|m| m.data.len()).sum()
}

/// A segment's weights, for as long as they are in use.
#[derive(Debug)]
pub enum Segment<'a> {
    /// Of a model in memory.
    Borrowed(&'a SegmentWeights),
    /// Read from a folder.
    Shared(Arc<SegmentWeights>),
}

impl Deref for Segment<'_> {
    type Target = SegmentWeights;

    fn deref(&self) -> &SegmentWeights {
        match self {
            Self::Borrowed(w) => w,
            Self::Shared(w) => w,
        }
    }
}

impl WeightSource for IntegerModel {
    fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    fn segments(&self) -> usize {
        self.weights.segments.len()
    }

    fn segment(&self, index: usize) -> Result<Segment<'_>, StoreError> {
        let missing = StoreError::Index { index, segments: self.segments() };
        self.weights.segments.get(index).map(Segment::Borrowed).ok_or(missing)
    }
}

/// A model in a folder, its descriptor in memory.
#[derive(Debug)]
pub struct StoredModel {
    folder: PathBuf,
    descriptor: Descriptor,
    /// What each segment's file was when it was first read.
    digests: Vec<OnceLock<[u8; DIGEST]>>,
    recent: Recent<SegmentWeights, usize>,
}

impl StoredModel {
    /// Opens a folder; `bytes` bounds the weights kept, the segment used last always stays.
    ///
    /// Weights are not looked at: see [`Self::check`].
    ///
    /// # Errors
    /// A descriptor that is missing or does not decode.
    pub fn open(folder: &Path, bytes: usize) -> Result<Self, StoreError> {
        let descriptor = read_descriptor(folder)?;
        let digests = (0..descriptor.layer_count() + 2).map(|_| OnceLock::new()).collect();
        Ok(Self { folder: folder.to_owned(), descriptor, digests, recent: Recent::new(bytes) })
    }

    /// Reads every segment once and verifies all that registration relies on. What later reads return is what was checked.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn check(&self) -> Result<(), StoreError> {
        let mut checker = Checker::new(&self.descriptor)?;
        (0..self.segments()).try_for_each(|i| Ok(checker.segment(&*self.segment(i)?)?))
    }

    fn read(&self, index: usize) -> Result<(SegmentWeights, usize), StoreError> {
        let (segment, digest) = read_segment(&self.folder, index)?;
        if *self.digests[index].get_or_init(|| digest) != digest {
            let path = segment_path(&self.folder, index);
            return Err(StoreError::Segment { path, reason: "the file has changed since it was first read" });
        }
        let bytes = cells(&segment);
        Ok((segment, bytes))
    }
}

impl WeightSource for StoredModel {
    fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    fn segments(&self) -> usize {
        self.digests.len()
    }

    fn segment(&self, index: usize) -> Result<Segment<'_>, StoreError> {
        if index >= self.segments() {
            return Err(StoreError::Index { index, segments: self.segments() });
        }
        self.recent.get_or(index, || self.read(index)).map(Segment::Shared)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::CheckError;
    use crate::toy;

    fn stored(model: &IntegerModel) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        model.save(folder.path(), None).unwrap();
        folder
    }

    #[test]
    fn a_folder_gives_what_memory_gives_within_any_bound() {
        let model = toy::model(3);
        let folder = stored(&model);
        for bytes in [0, 5000, WEIGHT_BYTES] {
            let source = StoredModel::open(folder.path(), bytes).unwrap();
            source.check().unwrap();
            assert_eq!((source.descriptor(), source.segments()), (&model.descriptor, model.segments()));
            for i in (0..model.segments()).chain((0..model.segments()).rev()) {
                assert_eq!(*source.segment(i).unwrap(), *model.segment(i).unwrap(), "{i} within {bytes}");
            }
            assert_eq!((source.cells().unwrap(), source.all().unwrap()), (model.weights.cells(), model.weights.clone()));
            let past = model.segments();
            assert!(matches!(source.segment(past), Err(StoreError::Index { .. })));
            assert!(matches!(model.segment(past), Err(StoreError::Index { .. })));
        }
    }

    #[test]
    fn kept_segments_are_not_read_again_and_dropped_ones_are() {
        let folder = stored(&toy::model(3));
        let roomy = StoredModel::open(folder.path(), WEIGHT_BYTES).unwrap();
        let tight = StoredModel::open(folder.path(), 0).unwrap();
        for source in [&roomy, &tight] {
            source.check().unwrap();
        }
        for i in 0..roomy.segments() {
            std::fs::remove_file(segment_path(folder.path(), i)).unwrap();
        }
        assert!(roomy.segment(0).is_ok());
        assert!(matches!(tight.segment(0), Err(StoreError::File { .. })));
    }

    #[test]
    fn what_was_checked_is_what_is_read() {
        let folder = stored(&toy::model(3));
        let source = StoredModel::open(folder.path(), 0).unwrap();
        source.check().unwrap();
        // Another good model of the same shape: only the digest tells.
        toy::model(4).save(folder.path(), None).unwrap();
        assert!(matches!(source.segment(1), Err(StoreError::Segment { .. })));
    }

    #[test]
    fn unregistrable_weights_are_refused() {
        let mut model = toy::model(3);
        model.weights.segments[1].matrices[0].data[0] = -128;
        let folder = stored(&model);
        let refused = StoredModel::open(folder.path(), 0).unwrap().check();
        assert!(matches!(refused, Err(StoreError::Check(CheckError::Weight { .. }))));
    }
}
