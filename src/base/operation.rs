//! Endpoints of the upstream. Its some ninety operations share its key, its envelope and its expiring URLs;
//! all their differences are in [`Operation`], so a further operation is a further value in [`OPERATIONS`].

use std::sync::Arc;

use crate::base::identity::Identity;
use crate::base::key::CacheKey;

#[derive(Debug)]
pub struct Operation {
    /// The path below the upstream's origin, and below ours.
    pub path: &'static str,
    /// Its part of the namespace; none for cropping, which came first.
    pub segment: Option<&'static str>,
    /// The form's fields: the picture, and two numbers. The key is made of their values, in this order.
    pub fields: [&'static str; 3],
    /// The members of the answer that lead to the URL.
    pub result_url: [&'static str; 2],
    /// By default.
    pub credits: u64,
    /// In the upstream's `query-credits` answer.
    pub credit_pool: &'static str,
    pub title: &'static str,
}

pub static IMAGE_CROPPING: Operation = Operation {
    path: "/api/image/editing/image-cropping",
    segment: None,
    fields: ["image", "width", "height"],
    result_url: ["data", "url"],
    credits: 3,
    credit_pool: "image_cropping",
    title: "AI Image Cropping",
};

/// A second operation, so that tests can prove that two share nothing.
#[cfg(feature = "crash-points")]
pub static SECOND: Operation =
    Operation { path: "/api/image/editing/second", segment: Some("second"), ..IMAGE_CROPPING };

/// The first is cropping.
pub static OPERATIONS: &[&Operation] = &[
    &IMAGE_CROPPING,
    #[cfg(feature = "crash-points")]
    &SECOND,
];

pub const QUERY_CREDITS_PATH: &str = "/api/common/query-credits";

/// The upstream's namespace cannot contain it.
const SEPARATOR: char = '.';

impl Operation {
    pub fn of_namespace(namespace: &str) -> Option<&'static Self> {
        let segment = namespace.split_once(SEPARATOR).map(|(_, segment)| segment);
        OPERATIONS.iter().find(|operation| operation.segment == segment).copied()
    }

    /// The upstream's namespace, with the segment.
    pub fn namespace(&self, upstream: &str) -> Arc<str> {
        match self.segment {
            None => upstream.into(),
            Some(segment) => format!("{upstream}{SEPARATOR}{segment}").into(),
        }
    }
}

/// An operation as this process offers it.
#[derive(Clone, Debug)]
pub struct Offer {
    pub operation: &'static Operation,
    pub namespace: Arc<str>,
    pub credits: u64,
}

impl Offer {
    /// `cropping_credits`: the configured credits of a crop.
    pub fn all(upstream_namespace: &str, cropping_credits: u64) -> Vec<Self> {
        let offer = |operation: &&'static Operation| Self {
            operation,
            namespace: operation.namespace(upstream_namespace),
            credits: if operation.segment.is_none() { cropping_credits } else { operation.credits },
        };
        OPERATIONS.iter().map(offer).collect()
    }

    pub fn identity(&self, key: CacheKey) -> Identity {
        Identity { namespace: self.namespace.clone(), key }
    }
}
