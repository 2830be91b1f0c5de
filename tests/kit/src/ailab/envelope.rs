//! The vendor's JSON, in the shape and the key order seen on the wire, and its error table as far as cropping may meet it.

use serde_json::{Value, json};
use uuid::Uuid;

/// `request_id` as the vendor writes it.
fn request_id() -> String {
    Uuid::new_v4().to_string().to_uppercase()
}

/// `log_id`: a decimal number in a string, eight digits like the ones seen.
fn log_id() -> String {
    (10_000_000 + Uuid::new_v4().as_u128() % 89_999_999).to_string()
}

/// The answer to a paid crop. The text is assembled by hand because its key order is part of what clients see.
pub(crate) fn success(url: &str, width: u32, height: u32) -> Vec<u8> {
    let url = json!(url);
    format!(
        r#"{{"data":{{"url":{url},"retain_location":{{"width":{width},"height":{height},"y":0,"x":0}}}},"error_code":0,"error_detail":{{"status_code":200,"code":"","code_message":"","message":""}},"error_msg":"","log_id":"{}","request_id":"{}"}}"#,
        log_id(),
        request_id()
    )
    .into_bytes()
}

/// The same without what the newer documentation leaves out.
pub(crate) fn success_new(url: &str, width: u32, height: u32) -> Vec<u8> {
    let url = json!(url);
    format!(
        r#"{{"request_id":"{}","log_id":"{}","error_detail":{{"code":"","code_message":"","message":""}},"data":{{"url":{url},"retain_location":{{"width":{width},"height":{height},"y":0,"x":0}}}}}}"#,
        request_id(),
        log_id()
    )
    .into_bytes()
}

/// What `Behaviour::ExtraFields` puts in `retain_location`, byte for byte.
pub const ODD_RETAIN_LOCATION: &str =
    r#"{ "height" :427,"x":-156 , "width":7.11e2,"y": 0,"confidence":0.10 }"#;

/// Unknown fields on both levels, unusual order and spacing, negative numbers, a number no float keeps, escapes in a string.
pub(crate) fn success_odd(url: &str) -> Vec<u8> {
    let url = json!(url);
    format!(
        "{{ \"trace\":{{\"z\":1,\"a\":[1,2 ,3]}},\"request_id\":\"{}\",\n \"error_code\":0,\"big\":12345678901234567890123,\"data\":{{\"model\":\"crop-\\u00e9\",\"retain_location\":{ODD_RETAIN_LOCATION},\"url\":{url},\"mask\":null}},\"error_detail\":{{\"message\":\"\",\"code\":\"\",\"status_code\":200,\"code_message\":\"\"}},\"error_msg\":\"\",\"log_id\":\"{}\",\"usage\":{{\"credits\":3}} }}",
        request_id(),
        log_id()
    )
    .into_bytes()
}

/// The error envelope. `detail` follows the table's text after " - ", as measured; empty leaves the text alone.
pub(crate) fn error(status: u16, code: &str, detail: &str) -> Vec<u8> {
    let text = code_message(code);
    let message = if detail.is_empty() { text.clone() } else { format!("{text} - {detail}") };
    format!(
        r#"{{"error_code":{status},"error_code_str":{c},"error_detail":{{"status_code":{status},"code":{c},"code_message":{t},"message":{m}}},"error_msg":{m},"log_id":"{}","request_id":"{}"}}"#,
        log_id(),
        request_id(),
        c = json!(code),
        t = json!(text),
        m = json!(message),
    )
    .into_bytes()
}

/// The answer of `GET /api/common/query-credits`.
pub(crate) fn credits(cropping: i64, common: i64, total: i64) -> Vec<u8> {
    let row = |sign: &str, name: &str, balance: i64, total: i64| {
        json!({
            "unique_sign": sign, "name": name, "balance": balance, "total": total,
            "last_recharge_balance": total, "balance_warning": 0,
            "first_buy_time": 1_780_000_000, "last_update_time": 1_790_000_000,
        })
    };
    let body: Value = json!({
        "request_id": request_id(),
        "log_id": log_id(),
        "error_code": 0,
        "error_code_str": "",
        "error_msg": "",
        "error_detail": {"status_code": 200, "code": "", "code_message": "", "message": ""},
        "data": [
            row("image_cropping", "Image cropping", cropping, total),
            row("common", "Common credits", common, common),
        ],
    });
    body.to_string().into_bytes()
}

/// The table's text for a code; a code that is not in it gets its own name spelt out.
pub(crate) fn code_message(code: &str) -> String {
    const LATER: &str = " Please try again later. If not resolved promptly, contact the platform.";
    let (text, later) = match code {
        "ERROR_PARAMETERS" => ("Invalid parameters.", ""),
        "MISSING_PARAMETERS" => ("Missing parameters.", ""),
        "ERROR_INVALID_PARAMETER" => ("Invalid parameter.", ""),
        "PARAMETERS_CANNOT_EMPTY" => ("Parameters cannot be empty.", ""),
        "UNSUPPORTED_PARAMETER_VALUES" => ("Invalid parameter values.", ""),
        "ERROR_USER_NOT_EXISTS" => ("The user does not exist.", ""),
        "ERROR_APPLICATIONS_NOT_EXISTS" => ("The application does not exist.", ""),
        "ERROR_USER_LOCKED" => ("The user is locked.", ""),
        "ERROR_ILLEGAL_OPERATION" => ("Illegal operation.", ""),
        "ERROR_AI_NOT_EXISTS" => {
            ("AI does not exist or has been deactivated, please contact the platform.", "")
        }
        "FILE_SIZE_EXCEEDS_LIMIT" => ("File size exceeds limit.", ""),
        "FILE_RESOLUTION_EXCEEDS_LIMITS" => ("File resolution exceeds limits.", ""),
        "ERROR_REQUEST_BODY_TOO_LARGE" => ("Request body size exceeds limit.", ""),
        "UNSUPPORTED_FILE_TYPES" => ("Unsupported file types.", ""),
        "ERROR_UNSUPPORTED_GRAYSCALE_IMAGE" => ("Grayscale image not supported.", ""),
        "FILE_DECODING_FAILURE" => ("File decoding failed.", ""),
        "ERROR_INVALID_FILE" => ("Invalid file.", ""),
        "FILE_CONTENT_NON_COMPLIANCE" => ("File content does not meet requirements.", ""),
        "ERROR_CONTENT_NON_COMPLIANCE" => ("Content does not meet requirements.", ""),
        "ERROR_NOT_ENOUGH_CREDITS" => ("Insufficient credits.", ""),
        "EXCEEDING_LIMITS" => ("Exceeds limit.", ""),
        "PROCESSING_FAILURE" => ("Processing failed.", ""),
        "UNKNOWN_ERROR" => ("Unknown error.", LATER),
        "SERVICE_INTERNAL_ERROR" => ("Service internal error.", LATER),
        "AI_SERVICE_ERROR" => ("AI service error.", LATER),
        "AI_SERVICE_INTERNAL_ERROR" => ("AI service internal error.", LATER),
        "AI_SERVICE_UNAUTHORIZED" => ("AI service unauthorized.", LATER),
        "AI_SERVICE_FLOW_RESTRICTION" => ("AI service is rate-limited.", LATER),
        "AI_SERVICE_TIMEOUT" => ("AI service timeout.", LATER),
        "ERROR_FILE_UPLOAD_FAILED" => ("File upload failed.", ""),
        "ERROR_FILE_DOWNLOAD_FAILED" => ("File download failed.", ""),
        other => return format!("{}.", other.to_lowercase().replace('_', " ")),
    };
    format!("{text}{later}")
}
