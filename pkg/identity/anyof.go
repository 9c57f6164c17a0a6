package identity

import (
	"context"
	"errors"
	"net"
	"slices"
	"time"
)

const (
	// eachLimit bounds one try where there are others to try: one scheduler that
	// hangs must not keep a node from the next.
	eachLimit = 5 * time.Second
	// lookupLimit bounds the look for further addresses of a name.
	lookupLimit = 2 * time.Second
	// maxTried bounds how many addresses one round tries.
	maxTried = 64
)

// anyOf gets certificates from whichever scheduler gives one. Certificates can be had
// from each that holds the CA; a join token is known only to the one that made it.
type anyOf struct {
	remoteIssuer                 // the scheduler that is tried first
	others       func() []string // and those after it; nil: none
	limit        time.Duration   // of one try where there are others
}

// renew implements issuer.
func (a *anyOf) renew(ctx context.Context, key Key, present *credential) (*credential, error) {
	return a.each(ctx, func(ctx context.Context, r *remoteIssuer) (*credential, error) { return r.renew(ctx, key, present) })
}

// join is remoteIssuer.join with each scheduler.
func (a *anyOf) join(ctx context.Context, key Key, role Role) (*credential, error) {
	return a.each(ctx, func(ctx context.Context, r *remoteIssuer) (*credential, error) { return r.join(ctx, key, role) })
}

// each asks one scheduler after the other until one answers well; the error joins
// those of all.
func (a *anyOf) each(ctx context.Context, ask func(context.Context, *remoteIssuer) (*credential, error)) (*credential, error) {
	addresses := a.addresses(ctx)
	var errs []error
	for _, address := range addresses {
		err := context.Cause(ctx)
		if err == nil {
			var c *credential
			if c, err = a.one(ctx, address, len(addresses), ask); err == nil {
				return c, nil
			}
		}
		if errs = append(errs, err); errors.Is(err, ErrWrongRole) || ctx.Err() != nil {
			break // the token is known there; or there is no time left
		}
	}
	if len(errs) == 1 {
		return nil, errs[0]
	}
	return nil, errors.Join(errs...)
}

func (a *anyOf) one(ctx context.Context, address string, of int, ask func(context.Context, *remoteIssuer) (*credential, error)) (*credential, error) {
	if of > 1 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, a.limit)
		defer cancel()
	}
	return ask(ctx, &remoteIssuer{scheduler: address, token: a.token})
}

// addresses are those to try, in order. A name with several stands for each of them,
// as that of a headless service in Kubernetes does: the token may be known to any.
func (a *anyOf) addresses(ctx context.Context) []string {
	names := []string{a.scheduler}
	if a.others != nil {
		names = append(names, a.others()...)
	}
	ctx, cancel := context.WithTimeout(ctx, lookupLimit)
	defer cancel()
	var out []string
	for _, name := range names {
		for _, one := range addressesOf(ctx, name) {
			if !slices.Contains(out, one) && len(out) < maxTried {
				out = append(out, one)
			}
		}
	}
	return out
}

// addressesOf is what a name stands for where that is more than one address, else the
// name itself; who dials it says what is wrong with it.
func addressesOf(ctx context.Context, name string) []string {
	host, port, err := net.SplitHostPort(name)
	if err != nil || host == "" || net.ParseIP(host) != nil {
		return []string{name}
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil || len(ips) < 2 {
		return []string{name}
	}
	var out []string
	for _, ip := range ips {
		out = append(out, net.JoinHostPort(ip.Unmap().String(), port))
	}
	return out
}
