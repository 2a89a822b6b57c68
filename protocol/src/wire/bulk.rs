//! Messages of blobs that travel in pieces, and of models whose files are blobs.

use rkyv::{Archive, Deserialize, Serialize};

use super::BlobRef;

/// First frame of a bulk stream: send me this blob from here on. After [`BlobPart`] come the outline, if asked for, and then chunks.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct BlobFetch {
    /// The blob.
    pub blob: BlobRef,
    /// Bytes the asker has: whole chunks.
    pub from: u64,
    /// Whether the asker needs the outline first.
    pub outline: bool,
}

/// Answer to [`BlobFetch`].
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct BlobPart {
    /// The blob.
    pub blob: BlobRef,
    /// Where the first chunk that follows begins.
    pub from: u64,
}

/// First frame of a bulk stream: I have this blob, how much of it do you want? After [`BlobHave`] come outline and chunks, and in the end
/// [`BlobStored`](super::BlobStored).
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct BlobOffer {
    /// The lease it belongs to; 0 for an administrator's model.
    pub epoch: u64,
    /// The blob.
    pub blob: BlobRef,
}

/// Answer to [`BlobOffer`].
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct BlobHave {
    /// The blob.
    pub blob: BlobRef,
    /// Bytes that are here: whole chunks, or all.
    pub from: u64,
    /// Whether the outline is still wanted.
    pub outline: bool,
}

/// An administrator's order: nodes may have this model. Its files were put before.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct ModelPublish {
    /// Model id.
    pub model: [u8; 32],
    /// The list of its files.
    pub manifest: BlobRef,
}

/// An administrator's order: nodes shall not be offered this model any more.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct ModelWithdraw {
    /// Model id.
    pub model: [u8; 32],
}

/// Which models can be had, those after this id.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct ModelsAfter {
    /// The last id known, or zeros.
    pub model: [u8; 32],
}

/// A page of models, by id.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Models {
    /// The models.
    pub models: Vec<ModelEntry>,
}

/// A model that can be had.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelEntry {
    /// Model id.
    pub model: [u8; 32],
    /// The list of its files.
    pub manifest: BlobRef,
    /// Bytes of its files.
    pub bytes: u64,
}
