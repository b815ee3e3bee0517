FROM safelight-test-base
# Of the official image: its user, its folder, and that the first start makes the database.
RUN useradd --non-unique --uid 999 --no-create-home database \
    && install -d -o 999 -g 999 -m 700 /var/lib/postgresql/data \
    && chmod 1777 /var/run/postgresql \
    && ln -s /usr/lib/postgresql/* /usr/lib/postgresql/any
ENV PATH=/usr/lib/postgresql/any/bin:$PATH PGDATA=/var/lib/postgresql/data
ENTRYPOINT ["/bin/sh", "-ec", "\
    if [ ! -s $PGDATA/PG_VERSION ]; then \
        printf %s $POSTGRES_PASSWORD > /tmp/password; \
        initdb --username=$POSTGRES_USER --pwfile=/tmp/password --auth=scram-sha-256 --encoding=UTF8 --locale=C.UTF-8; \
        echo host all all all scram-sha-256 >> $PGDATA/pg_hba.conf; \
        echo CREATE DATABASE $POSTGRES_USER | postgres --single postgres; \
    fi; \
    exec postgres -c listen_addresses=*"]
