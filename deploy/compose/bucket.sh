#!/bin/sh
# Makes a bucket, by the address in the first argument; one that is there already is left as it is.
# The credentials come from the environment and do not appear among the arguments of any process.
set -eu

ask() {
    printf 'user = "%s:%s"\n' "$RUSTFS_ACCESS_KEY" "$RUSTFS_SECRET_KEY" |
        curl --config - --silent --show-error --fail --max-time 30 --output /dev/null \
            --aws-sigv4 aws:amz:us-east-1:s3 "$@"
}

if ask --head "$1" 2>/dev/null; then
    echo "the bucket is there"
else
    ask --request PUT "$1"
    echo "the bucket was made"
fi
