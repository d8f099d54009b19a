FROM python:3.11-slim-bookworm
COPY demo.py /usr/local/lib/demo.py
USER 10001:10001
ENTRYPOINT ["python3", "/usr/local/lib/demo.py"]
