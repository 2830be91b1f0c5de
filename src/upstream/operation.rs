//! What is sold: the one upstream operation Granary serves, as a value.
//!
//! The upstream has some ninety operations that share its key, its envelope and its expiring URLs.
//! Whatever tells one from another stands here, and nowhere else: a second one is a second value.

/// One operation of the upstream's API.
#[derive(Debug)]
pub struct Operation {
    /// The path below the upstream's origin, and below ours.
    pub path: &'static str,
    /// The name of its credit pool in the upstream's `query-credits` answer.
    pub credit_pool: &'static str,
    /// What people call it.
    pub title: &'static str,
}

/// *AI image cropping*: fields `image`, `width`, `height`; the result at `data.url`.
pub const IMAGE_CROPPING: Operation = Operation {
    path: "/api/image/editing/image-cropping",
    credit_pool: "image_cropping",
    title: "AI Image Cropping",
};

/// The upstream's free call that tells what is left to spend.
pub const QUERY_CREDITS_PATH: &str = "/api/common/query-credits";
