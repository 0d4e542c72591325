# What the public image of Valkey does, with Debian's server: it starts as root, gives its data to
# the user valkey, and goes on as that user.
FROM python:3.11-slim
RUN mkdir -p /data && chown valkey:valkey /data \
 && printf '%s\n' '#!/bin/sh' 'set -e' 'find . ! -user valkey -exec chown valkey:valkey {} +' \
    'exec setpriv --reuid valkey --regid valkey --clear-groups -- "$@"' > /usr/local/bin/entrypoint.sh \
 && chmod 755 /usr/local/bin/entrypoint.sh
VOLUME /data
WORKDIR /data
ENTRYPOINT ["entrypoint.sh"]
CMD ["valkey-server"]
