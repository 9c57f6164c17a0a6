package origin

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/damselfly-p2p/damselfly/e2e/process"
)

// Nginx puts nginx with TLS before a registry, as many are run.
type Nginx struct {
	// Program is nginx.
	Program string
	// Settings are further lines of its server's configuration.
	Settings []string
}

// start starts nginx before the server at upstream and returns its URL and process.
// "listen … http2" is how releases before 1.25 were told; newer ones warn.
func (n *Nginx) start(ctx context.Context, o *Origin, cfg Config, upstream string) (string, *process.Process, error) {
	cert, err := cfg.Wire.Authority.Server(cfg.Wire.Names...)
	if err != nil {
		return "", nil, err
	}
	certFile, keyFile, err := cfg.Wire.Authority.Files("nginx", cert)
	if err != nil {
		return "", nil, err
	}
	addr, err := process.FreeAddr()
	if err != nil {
		return "", nil, err
	}
	dir := filepath.Join(cfg.Dir, "nginx")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", nil, err
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	text := fmt.Sprintf(`daemon off;
user root;
worker_processes 1;
pid %[1]q;
error_log stderr warn;
events { worker_connections 512; }
http {
	access_log off;
	client_body_temp_path %[2]q;
	proxy_temp_path %[3]q;
	fastcgi_temp_path %[4]q;
	uwsgi_temp_path %[5]q;
	scgi_temp_path %[6]q;
	server {
		listen %[7]s ssl http2;
		ssl_certificate %[8]q;
		ssl_certificate_key %[9]q;
		client_max_body_size 0;
		%[10]s
		location / {
			proxy_pass %[11]s;
			proxy_http_version 1.1;
			proxy_set_header Host $http_host;
			proxy_set_header Connection "";
			proxy_set_header X-Forwarded-Proto https;
			proxy_set_header %[12]s "$server_protocol, $ssl_protocol";
		}
	}
}
`, in("pid"), in("body"), in("proxy"), in("fastcgi"), in("uwsgi"), in("scgi"), addr, certFile, keyFile,
		strings.Join(n.Settings, "\n\t\t"), upstream, spokenHeader)
	if err := os.WriteFile(in("nginx.conf"), []byte(text), 0o644); err != nil {
		return "", nil, err
	}
	p, err := process.Start(process.Spec{
		Name: "nginx", Path: n.Program, Args: []string{"-p", dir, "-e", "stderr", "-c", in("nginx.conf")}, Dir: dir,
		// A namespace of processes of its own: nginx's workers outlive a master that is
		// killed.
		Mounts: []string{":"},
	})
	if err != nil {
		return "", nil, err
	}
	url := "https://" + addr
	return url, p, p.Ready(ctx, process.AnswersBy(o.Client, url+"/v2/"))
}
