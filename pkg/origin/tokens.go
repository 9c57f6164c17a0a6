package origin

import (
	"context"
	"time"

	"golang.org/x/sync/singleflight"
	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry/remote/auth"
)

// tokenCache is the auth.Cache of one registry and one asker. Unlike the
// library's own it ends a token when the realm said it ends, is bounded, and
// lets a fetch that several requests wait for outlive the one that began it.
type tokenCache struct {
	timeout time.Duration // of one fetch
	flights singleflight.Group
	tokens  *expiring[tokenID, string]
}

// tokenID names a token twice: by the scope that the registry asked for, and by
// the repository that it was asked for, so that the next request for that
// repository finds it before there is a challenge. entry is the credential that it
// was had for, where a registry has several.
type tokenID struct {
	entry  string
	scheme auth.Scheme
	scope  string
	repo   string
}

// fetched is a token and how long it may be used.
type fetched struct {
	value string
	life  time.Duration
}

const (
	maxTokens = 1024
	// defaultTokenLife is what a realm means that gives no expires_in
	// (distribution spec of tokens, "Token Response Fields").
	defaultTokenLife = 60 * time.Second
	// basicLife is for name and password, which end when they are refused.
	basicLife = 24 * time.Hour
)

func newTokenCache(timeout time.Duration) *tokenCache {
	return &tokenCache{timeout: timeout, tokens: newExpiring[tokenID, string](maxTokens)}
}

// fetchInfo is what a token request learns that the library does not hand on.
type fetchInfo struct{ life time.Duration }

type fetchKey struct{}

// GetScheme implements auth.Cache.
func (t *tokenCache) GetScheme(ctx context.Context, _ string) (auth.Scheme, error) {
	a := attemptOf(ctx)
	if _, ok := t.tokens.get(tokenID{entry: a.entry, scheme: auth.SchemeBearer, repo: a.repo}); ok {
		return auth.SchemeBearer, nil
	}
	if _, ok := t.tokens.get(tokenID{entry: a.entry, scheme: auth.SchemeBasic}); ok {
		return auth.SchemeBasic, nil
	}
	return auth.SchemeUnknown, errdef.ErrNotFound
}

// GetToken implements auth.Cache. With an empty key it is a guess before the
// challenge; with a key it is asked after the guess was refused.
func (t *tokenCache) GetToken(ctx context.Context, _ string, scheme auth.Scheme, key string) (string, error) {
	a := attemptOf(ctx)
	id := tokenID{entry: a.entry, scheme: scheme, scope: key}
	if scheme == auth.SchemeBearer && key == "" {
		id.repo = a.repo
	}
	v, ok := t.tokens.get(id)
	if !ok || v == a.tried {
		return "", errdef.ErrNotFound
	}
	a.tried = v
	return v, nil
}

// Set implements auth.Cache: it fetches a token, once for all that ask for the
// same one at a time.
func (t *tokenCache) Set(ctx context.Context, _ string, scheme auth.Scheme, key string, fetch func(context.Context) (string, error)) (string, error) {
	a := attemptOf(ctx)
	done := t.flights.DoChan(scheme.String()+" "+a.entry+" "+key, func() (any, error) {
		info := &fetchInfo{life: defaultTokenLife}
		fctx, cancel := context.WithTimeout(context.WithValue(context.WithoutCancel(ctx), fetchKey{}, info), t.timeout)
		defer cancel()
		v, err := fetch(fctx)
		if err != nil {
			return "", err
		}
		got := fetched{value: v, life: basicLife}
		if scheme == auth.SchemeBearer {
			got.life = info.life
		}
		t.tokens.put(tokenID{entry: a.entry, scheme: scheme, scope: key}, v, got.life)
		return got, nil
	})
	select {
	case <-ctx.Done():
		return "", ctx.Err()
	case r := <-done:
		if r.Err != nil {
			return "", r.Err
		}
		got := r.Val.(fetched)
		if scheme == auth.SchemeBearer {
			t.tokens.put(tokenID{entry: a.entry, scheme: scheme, repo: a.repo}, got.value, got.life)
		}
		return got.value, nil
	}
}
