"""The vendor's Python SDK and `requests`: BASE_URL TOKEN PICTURE TRIES. Prints what each saw as one line of JSON."""

import asyncio
import collections
import json
import sys

import requests
from ailabtools import AILabClient
from ailabtools.errors import AILabApiError

base, token, picture, tries = sys.argv[1:5]
CROP = "/api/image/editing/image-cropping"
# Too large for the socket buffers in between, and refused by its head.
LARGE = b"\xff\xd8" + bytes(20_000_000)


async def sdk():
    client = AILabClient(api_key=token, base_url=base)
    with open(picture, "rb") as image:
        bought = await client.image.imageAIImageCropping({"image": image, "width": 64, "height": 48})
    with open(picture, "rb") as image:
        again = await client.image.imageAIImageCropping({"image": image.read(), "width": 64, "height": 48})
    credits = await client.common.commonQueryCredits({})
    await client.aclose()

    refusals = collections.Counter()
    for _ in range(int(tries)):
        stranger = AILabClient(api_key="bad", base_url=base)
        try:
            await stranger.image.imageAIImageCropping({"image": LARGE, "width": 64, "height": 48})
        except AILabApiError as error:
            refusals[f"{error.detail.status_code} {error.detail.code}"] += 1
        except Exception as error:
            refusals[type(error).__name__] += 1
        await stranger.aclose()
    return {
        "url": bought["data"]["url"],
        "again": again["data"]["url"],
        "pool": credits["data"][0]["unique_sign"],
        "refusals": refusals,
    }


def by_requests():
    form = {"width": "64", "height": "48"}
    headers = {"ailabapi-api-key": token}
    with open(picture, "rb") as image:
        answer = requests.post(base + CROP, headers=headers, data=form, files={"image": image}, timeout=30)
    refusals = collections.Counter()
    for _ in range(int(tries)):
        try:
            headers = {"ailabapi-api-key": "bad"}
            refused = requests.post(base + CROP, headers=headers, data=form, files={"image": LARGE}, timeout=60)
            refusals[f"{refused.status_code} {refused.json()['error_code_str']}"] += 1
        except requests.RequestException as error:
            refusals[type(error).__name__] += 1
    return {"url": answer.json()["data"]["url"], "refusals": refusals}


print(json.dumps({"sdk": asyncio.run(sdk()), "requests": by_requests()}))
