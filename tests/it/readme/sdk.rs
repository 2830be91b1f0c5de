use ailabtools::generated::params::ImageAIImageCroppingParams;
use ailabtools::{Client, FileInput, Result};

async fn crop(base_url: &str, token: &str) -> Result<Option<String>> {
    let client = Client::builder(token).base_url(base_url).build()?;
    let image = FileInput::from_path("tests/images/rocket.jpg", Some("image/jpeg"))?;
    let params = ImageAIImageCroppingParams::new(image, 400, 400);
    let answer = client.image.image_ai_image_cropping(params).await?;
    Ok(answer.data.and_then(|data| data.url))
}
