//! The five operations on objects and two on buckets, behind the signature checks of `s3s`.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::BodyExt;
use s3s::checksum::ChecksumHasher;
use s3s::crypto::{Checksum as _, Crc32, Sha256};
use s3s::dto::{
    CreateBucketInput, CreateBucketOutput, DeleteObjectInput, DeleteObjectOutput, ETag, ETagCondition,
    GetObjectInput, GetObjectOutput, HeadBucketInput, HeadBucketOutput, HeadObjectInput, HeadObjectOutput,
    ListObjectsV2Input, ListObjectsV2Output, Object, PutObjectInput, PutObjectOutput, StreamingBlob,
};
use s3s::{Body, S3, S3Request, S3Response, S3Result, s3_error};

use super::objects::{Condition, Objects, StoredObject, Unmet};

/// Serves one bucket, and those that clients make.
pub(super) struct Backend {
    pub(super) bucket: String,
    pub(super) objects: Arc<Objects>,
    pub(super) made: Mutex<BTreeSet<String>>,
}

impl Backend {
    fn check_bucket(&self, name: &str) -> S3Result<()> {
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if name == self.bucket || made.contains(name) { Ok(()) } else { Err(s3_error!(NoSuchBucket)) }
    }

    /// What an object is called among those of all buckets; those of the first have the names they were given.
    fn name(&self, bucket: &str, key: &str) -> String {
        if bucket == self.bucket { key.to_owned() } else { format!("{bucket}:{key}") }
    }

    fn object(&self, name: &str) -> S3Result<StoredObject> {
        self.objects.map().get(name).cloned().ok_or_else(|| s3_error!(NoSuchKey))
    }
}

#[async_trait]
impl S3 for Backend {
    async fn put_object(&self, request: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let input = request.input;
        self.check_bucket(&input.bucket)?;
        let declared = input.content_length.ok_or_else(|| s3_error!(MissingContentLength))?;
        // What is not whole never gets further.
        let bytes = whole(input.body).await?;
        if bytes.len() as i64 != declared {
            return Err(s3_error!(IncompleteBody));
        }
        let mut hasher =
            ChecksumHasher { crc32: Some(Crc32::new()), sha256: Some(Sha256::new()), ..Default::default() };
        hasher.update(&bytes);
        let computed = hasher.finalize();
        for (sent, computed) in [
            (&input.checksum_crc32, &computed.checksum_crc32),
            (&input.checksum_sha256, &computed.checksum_sha256),
        ] {
            if sent.is_some() && sent != computed {
                return Err(s3_error!(BadDigest));
            }
        }
        let mut conditions = Vec::new();
        match input.if_none_match {
            None => {}
            Some(ETagCondition::Any) => conditions.push(Condition::Absent),
            // As S3 itself.
            Some(ETagCondition::ETag(_)) => return Err(s3_error!(NotImplemented)),
        }
        match input.if_match {
            None => {}
            Some(ETagCondition::Any) => conditions.push(Condition::Present),
            Some(ETagCondition::ETag(tag)) => conditions.push(Condition::Tag(tag.into_value())),
        }
        let object = StoredObject {
            bytes,
            content_type: input.content_type,
            cache_control: input.cache_control,
            checksummed: input.checksum_crc32.is_some() || input.checksum_sha256.is_some(),
            tag: String::new(),
        };
        let tag = self.objects.put(&self.name(&input.bucket, &input.key), object, &conditions).map_err(
            |unmet| match unmet {
                Unmet::Failed => s3_error!(PreconditionFailed),
                Unmet::Nothing => s3_error!(NoSuchKey),
            },
        )?;
        Ok(S3Response::new(PutObjectOutput { e_tag: Some(ETag::Strong(tag)), ..Default::default() }))
    }

    async fn get_object(&self, request: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let input = request.input;
        self.check_bucket(&input.bucket)?;
        let object = self.object(&self.name(&input.bucket, &input.key))?;
        let whole = object.bytes.len();
        let range = input.range.map(|range| range.check(whole as u64));
        let range = range.transpose().map_err(|_| s3_error!(InvalidRange))?;
        let (status, bytes, content_range) = match range {
            None => (http::StatusCode::OK, object.bytes, None),
            Some(range) => {
                let bytes = object.bytes.slice(range.start as usize..range.end as usize);
                let said = format!("bytes {}-{}/{whole}", range.start, range.end - 1);
                (http::StatusCode::PARTIAL_CONTENT, bytes, Some(said))
            }
        };
        let output = GetObjectOutput {
            content_length: Some(bytes.len() as i64),
            body: Some(StreamingBlob::from(Body::from(bytes))),
            content_range,
            content_type: object.content_type,
            cache_control: object.cache_control,
            e_tag: Some(ETag::Strong(object.tag)),
            ..Default::default()
        };
        Ok(S3Response::with_status(output, status))
    }

    async fn head_object(
        &self,
        request: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        let input = request.input;
        self.check_bucket(&input.bucket)?;
        let object = self.object(&self.name(&input.bucket, &input.key))?;
        Ok(S3Response::new(HeadObjectOutput {
            content_length: Some(object.bytes.len() as i64),
            content_type: object.content_type,
            cache_control: object.cache_control,
            e_tag: Some(ETag::Strong(object.tag)),
            ..Default::default()
        }))
    }

    async fn delete_object(
        &self,
        request: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        let input = request.input;
        self.check_bucket(&input.bucket)?;
        let condition = input.if_match.map(|condition| match condition {
            ETagCondition::Any => Condition::Present,
            ETagCondition::ETag(tag) => Condition::Tag(tag.into_value()),
        });
        self.objects.remove(&self.name(&input.bucket, &input.key), condition).map_err(
            |unmet| match unmet {
                Unmet::Failed => s3_error!(PreconditionFailed),
                Unmet::Nothing => s3_error!(NoSuchKey),
            },
        )?;
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = request.input;
        self.check_bucket(&input.bucket)?;
        let prefix = self.name(&input.bucket, input.prefix.as_deref().unwrap_or_default());
        let after = input.start_after.map(|after| self.name(&input.bucket, &after));
        let limit = usize::try_from(input.max_keys.unwrap_or(1000)).unwrap_or(0).min(1000);
        let map = self.objects.map();
        let is_listed =
            |name: &&String| name.starts_with(&prefix) && after.as_ref().is_none_or(|after| *name > after);
        let mut names = map.keys().filter(is_listed);
        let contents: Vec<Object> = names
            .by_ref()
            .take(limit)
            .map(|name| Object { key: Some(name.clone()), ..Default::default() })
            .collect();
        Ok(S3Response::new(ListObjectsV2Output {
            is_truncated: Some(names.next().is_some()),
            key_count: Some(contents.len() as i32),
            contents: Some(contents),
            ..Default::default()
        }))
    }

    async fn head_bucket(
        &self,
        request: S3Request<HeadBucketInput>,
    ) -> S3Result<S3Response<HeadBucketOutput>> {
        self.check_bucket(&request.input.bucket)?;
        Ok(S3Response::new(HeadBucketOutput::default()))
    }

    async fn create_bucket(
        &self,
        request: S3Request<CreateBucketInput>,
    ) -> S3Result<S3Response<CreateBucketOutput>> {
        let name = request.input.bucket;
        if self.check_bucket(&name).is_ok() {
            return Err(s3_error!(BucketAlreadyOwnedByYou));
        }
        self.made.lock().unwrap_or_else(PoisonError::into_inner).insert(name);
        Ok(S3Response::new(CreateBucketOutput::default()))
    }
}

async fn whole(body: Option<StreamingBlob>) -> S3Result<Bytes> {
    let Some(body) = body else { return Ok(Bytes::new()) };
    let read = Body::from(body).collect().await;
    // Cut, or not what was signed.
    Ok(read.map_err(|_| s3_error!(IncompleteBody))?.to_bytes())
}
