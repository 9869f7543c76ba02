# docker build -t kvstore . && docker run -p 127.0.0.1:8000:8000 -e KVSTORE_OPEN=1 -v kvstore:/data kvstore
FROM python:3.13-slim

WORKDIR /app
RUN useradd --system --create-home kvstore && install --directory --owner kvstore --mode 700 /data

COPY requirements.txt ./
RUN pip install --no-cache-dir --requirement requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY kvstore kvstore
RUN pip install --no-cache-dir --no-deps .

USER kvstore
ENV HOST=0.0.0.0 PORT=8000 KVSTORE_DATA=/data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"PORT\"]}/_/health', timeout=5)"]
CMD ["kvstore"]
