# docker build -t lpmbench . && docker run --rm -v "$PWD/runs:/lpmbench/runs" lpmbench run demo
# Not tested where this was written: no container engine ran there.
FROM python:3.11-slim

WORKDIR /lpmbench
COPY . .
RUN python -m pip install --no-cache-dir -e .

ENTRYPOINT ["lpmbench"]
CMD ["--help"]
