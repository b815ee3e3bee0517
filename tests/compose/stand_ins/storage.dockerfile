FROM safelight:test
USER root
COPY wheels /wheels
RUN /opt/safelight/bin/pip install --quiet --no-index --find-links /wheels moto[s3] flask flask-cors
USER 10001
ENTRYPOINT ["python", "-c", "\
from moto.server import DomainDispatcherApplication, create_backend_app\n\
from werkzeug.serving import run_simple\n\
store = DomainDispatcherApplication(create_backend_app)\n\
def application(environ, start):\n\
    if environ['PATH_INFO'] != '/healthz':\n\
        return store(environ, start)\n\
    start('200 OK', [])\n\
    return [b'']\n\
run_simple('0.0.0.0', 8333, application, threaded=True)"]
