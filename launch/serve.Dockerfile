# An image that answers requests on a CPU, with the quantised ONNX file of a model folder where it has one.
#
#   docker build -f launch/serve.Dockerfile -t distil-jax-serve .
#   docker run -p 8000:8000 -v "$PWD/models/mine:/model:ro" distil-jax-serve
#
# Options of `distil-jax serve` go behind the image's name; --host 0.0.0.0 has to be among them then.
FROM python:3.13-slim

WORKDIR /src
COPY . .
RUN pip install --no-cache-dir ".[serve,onnx]" && useradd --create-home serve

USER serve
# Compiled programs and caches go to the home of this user. As process 1 the server gets SIGTERM itself, and ends once
# all accepted requests are answered.
WORKDIR /home/serve
EXPOSE 8000
HEALTHCHECK --start-period=120s CMD \
    ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=5)"]
ENTRYPOINT ["distil-jax", "serve", "/model"]
CMD ["--host", "0.0.0.0"]
