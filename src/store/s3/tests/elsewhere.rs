//! A second opinion: the contract against any S3 server, whose address is in the variable
//! `GRANARY_TEST_S3_ENDPOINT`; without it these tests do nothing. Credentials, where the server
//! looks at them, are in a file named by `GRANARY_TEST_S3_CREDENTIALS_FILE`.

use std::path::PathBuf;

use aws_sdk_s3::Client;

use super::*;

const BUCKET: &str = "granary-elsewhere";

/// A prefix of its own in a bucket that is made when it is missing.
struct Elsewhere {
    config: S3StoreConfig,
    client: Client,
    _folder: TempDir,
}

impl Elsewhere {
    async fn find() -> Option<Self> {
        let endpoint = std::env::var("GRANARY_TEST_S3_ENDPOINT").ok()?;
        let folder = TempDir::new().unwrap();
        let file = std::env::var_os("GRANARY_TEST_S3_CREDENTIALS_FILE").map_or_else(
            || {
                let file = folder.path().join("credentials");
                let any = "[default]\naws_access_key_id = any\naws_secret_access_key = any\n";
                std::fs::write(&file, any).unwrap();
                file
            },
            PathBuf::from,
        );
        let config = S3StoreConfig {
            prefix: uuid::Uuid::new_v4().to_string(),
            endpoint: Some(endpoint),
            path_style: true,
            credentials_file: Some(file),
            bucket: BUCKET.to_owned(),
            ..S3StoreConfig::default()
        };
        let client = client::connect(&config).await;
        // Another test may have made it.
        client.create_bucket().bucket(BUCKET).send().await.ok();
        Some(Self { config, client, _folder: folder })
    }
}

#[async_trait]
impl StoreFixture for Elsewhere {
    async fn open(&self) -> Arc<dyn Store> {
        Arc::new(S3Store::open(self.config.clone()).await)
    }

    async fn overwrite(&self, path: &str, bytes: &[u8]) {
        let key = format!("{}/{path}", self.config.prefix);
        let put = self.client.put_object().bucket(BUCKET).key(key).body(bytes.to_vec().into());
        put.send().await.unwrap();
    }
}

store_contract!(match Elsewhere::find().await {
    Some(elsewhere) => elsewhere,
    None => return,
});

#[tokio::test]
async fn it_is_proved() {
    let Some(elsewhere) = Elsewhere::find().await else { return };
    elsewhere.open().await.prove().await.unwrap();
}
