FROM python:3.11-slim-bookworm
RUN pip install --no-cache-dir supervisor==4.3.0
# The proxy's group shares three directories with the daemon: it writes in the first,
# connects to a socket in the second, and appends to the main log in the third.
RUN groupadd --gid 10001 twiddler \
 && install -d -m 2775 -g twiddler /etc/supervisor/conf.d /run/supervisor /var/log/supervisor
WORKDIR /srv
# In the foreground the daemon leaves its umask alone; 002 keeps a rotated log writable for the group.
CMD ["sh", "-c", "umask 002 && exec supervisord --nodaemon --configuration /etc/supervisor/supervisord.conf"]
