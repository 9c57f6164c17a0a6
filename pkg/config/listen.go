package config

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
)

// CheckAddress says what is wrong with an address to listen on, host:port or
// :port, of setting. The empty one is right: it turns off what would listen.
func CheckAddress(setting, addr string) error {
	if addr == "" {
		return nil
	}
	_, port, err := net.SplitHostPort(addr)
	if err == nil {
		_, err = net.LookupPort("tcp", port)
	}
	if err != nil || port == "" {
		return fmt.Errorf("%s: %q is no address to listen on: want host:port or :port, such as 127.0.0.1:65001", setting, addr)
	}
	return nil
}

// Listen opens a TCP listener at addr, host:port or :port; port 0 takes a free
// one. The setting is what the user changes to get another address, such as
// "--ops-listen". The error names both, says why it failed and what to do, and
// wraps the system's error.
func Listen(ctx context.Context, addr, setting string) (net.Listener, error) {
	if _, _, err := net.SplitHostPort(addr); err != nil {
		return nil, fmt.Errorf("cannot listen on %q: want host:port or :port in %s: %w", addr, setting, err)
	}
	var l net.ListenConfig
	listener, err := l.Listen(ctx, "tcp", addr)
	if err == nil {
		return listener, nil
	}
	hint := "choose another address with " + setting
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		hint = "another process uses this address (`ss -ltnp` shows which); stop it or choose another address with " + setting
	case errors.Is(err, syscall.EACCES):
		hint = "ports below 1024 need root or CAP_NET_BIND_SERVICE; choose a higher port with " + setting
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		hint = "no network interface of this machine has this address (`ip addr` shows them); change " + setting
	}
	return nil, fmt.Errorf("cannot listen on %s: %s: %w", addr, hint, err)
}
