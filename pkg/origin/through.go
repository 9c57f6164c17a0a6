package origin

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"golang.org/x/net/http/httpproxy"
	"golang.org/x/net/proxy"
)

// proxyFunc says which proxy a URL is reached through, nil for none. It errs
// where the guard refuses what the URL spells out; inside says that a host with
// trustLeads led there.
type proxyFunc func(to *url.URL, inside bool) (*url.URL, error)

// newProxy returns the choice of a proxy that c makes, and trusts the proxies'
// addresses.
func newProxy(c Config, g *guard) (proxyFunc, error) {
	if c.Proxy == "none" {
		return func(*url.URL, bool) (*url.URL, error) { return nil, nil }, nil
	}
	env := httpproxy.FromEnvironment()
	if c.Proxy != "" {
		env.HTTPProxy, env.HTTPSProxy = c.Proxy, c.Proxy
	}
	for _, s := range []string{env.HTTPProxy, env.HTTPSProxy} {
		if s == "" {
			continue
		}
		if !strings.Contains(s, "://") {
			s = "http://" + s
		}
		u, err := url.Parse(s)
		if err != nil {
			return nil, errors.New("proxy of the environment (HTTPS_PROXY, HTTP_PROXY): not a URL")
		}
		g.trustProxy(u)
	}
	choose := env.ProxyFunc()
	return func(to *url.URL, inside bool) (*url.URL, error) {
		u, err := choose(to)
		if u == nil || err != nil {
			return nil, err
		}
		return u, g.checkLiteral(dialAddr(to), inside)
	}, nil
}

// dialThrough connects to addr, host:port, by way of an HTTP or SOCKS proxy.
// Errors hold no part of the proxy's userinfo.
func dialThrough(ctx context.Context, dial dialFunc, via *url.URL, addr string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	fail := func(err error) (net.Conn, error) {
		return nil, fmt.Errorf("by the proxy %s (origin.proxy or HTTPS_PROXY): %w", redactURL(via), err)
	}
	if strings.HasPrefix(via.Scheme, "socks5") {
		conn, err := dialSocks(ctx, dial, via, addr)
		if err != nil {
			return fail(err)
		}
		return conn, nil
	}
	conn, err := dial(ctx, "tcp", dialAddr(via))
	if err != nil {
		return fail(err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	err = nil
	out := conn
	if via.Scheme == "https" {
		secure := tls.Client(conn, &tls.Config{ServerName: via.Hostname(), MinVersion: tls.VersionTLS12})
		out, err = secure, secure.HandshakeContext(ctx)
	}
	if err == nil {
		err = connect(out, via.User, addr)
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = conn.Close()
		if why := ctx.Err(); why != nil {
			err = why
		}
		return fail(err)
	}
	return out, nil
}

// connect asks a proxy for a tunnel to addr (RFC 9110 section 9.3.6).
func connect(conn net.Conn, user *url.Userinfo, addr string) error {
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: addr}, Host: addr, Header: http.Header{}}
	if user != nil {
		password, _ := user.Password()
		req.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(user.Username()+":"+password)))
	}
	if err := req.Write(conn); err != nil {
		return err
	}
	head, err := readHead(conn)
	if err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(head)), req)
	if err != nil {
		return errors.New("its answer to CONNECT is not HTTP")
	}
	_ = resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusProxyAuthRequired:
		return fmt.Errorf("it answered 407 to CONNECT %s; put user and password of the proxy into its URL", addr)
	case resp.StatusCode < 200 || resp.StatusCode > 299:
		return fmt.Errorf("it answered %d %s to CONNECT %s", resp.StatusCode, http.StatusText(resp.StatusCode), addr)
	}
	return nil
}

// maxConnectHead bounds a proxy's answer to CONNECT.
const maxConnectHead = 16 << 10

// readHead reads the head of an answer and not a byte more: what follows is the
// far side's, and the connection is handed on bare.
func readHead(conn net.Conn) ([]byte, error) {
	var head []byte
	var b [1]byte
	for !bytes.HasSuffix(head, []byte("\r\n\r\n")) && !bytes.HasSuffix(head, []byte("\n\n")) {
		if len(head) == maxConnectHead {
			return nil, errors.New("its answer to CONNECT has no end")
		}
		if _, err := conn.Read(b[:]); err != nil {
			return nil, err
		}
		head = append(head, b[0])
	}
	return head, nil
}

// contextDialer makes a dialFunc fit for package proxy.
type contextDialer struct{ dial dialFunc }

// Dial implements proxy.Dialer.
func (d contextDialer) Dial(network, addr string) (net.Conn, error) {
	return d.dial(context.Background(), network, addr)
}

// DialContext implements proxy.ContextDialer.
func (d contextDialer) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	return d.dial(ctx, network, addr)
}

func dialSocks(ctx context.Context, dial dialFunc, via *url.URL, addr string) (net.Conn, error) {
	var auth *proxy.Auth
	if via.User != nil {
		password, _ := via.User.Password()
		auth = &proxy.Auth{User: via.User.Username(), Password: password}
	}
	d, err := proxy.SOCKS5("tcp", dialAddr(via), auth, contextDialer{dial})
	if err != nil {
		return nil, err
	}
	c, ok := d.(proxy.ContextDialer)
	if !ok {
		return nil, errors.New("no SOCKS dialer")
	}
	return c.DialContext(ctx, "tcp", addr)
}
