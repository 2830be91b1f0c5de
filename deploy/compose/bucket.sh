#!/bin/sh
# Makes a bucket, by the address in the first argument; one that is there already is left as it is.
# The credentials come from the environment and do not appear among the arguments of any process.
set -eu

# The SHA-256 of an empty body. Signed by name, because not every curl that signs does this by itself.
nothing=e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855

ask() {
    printf 'user = "%s:%s"\n' "$RUSTFS_ACCESS_KEY" "$RUSTFS_SECRET_KEY" |
        curl --config - --silent --show-error --fail --max-time 30 --output /dev/null \
            --aws-sigv4 aws:amz:us-east-1:s3 --header "x-amz-content-sha256: $nothing" "$@"
}

if ask --head "$1" 2>/dev/null; then
    echo "the bucket is there"
else
    ask --request PUT "$1"
    echo "the bucket was made"
fi
