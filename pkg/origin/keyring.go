package origin

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/credentials"
)

// keyring finds the node's own credentials in a docker config.json. The file is
// read at each look, and what was found is remembered only so long that a storm
// of 401s does not become a storm of credential helpers.
type keyring struct {
	path string
	memo *expiring[string, auth.Credential]
}

const (
	memoLife = 30 * time.Second
	maxMemo  = 256
)

func newKeyring(path string) *keyring {
	return &keyring{path: path, memo: newExpiring[string, auth.Credential](maxMemo)}
}

// find returns the credential of a registry, whose names are given in the order
// in which they count; the empty one where there is none. Errors hold no part of
// a credential.
func (k *keyring) find(ctx context.Context, names []string) (auth.Credential, error) {
	if k.path == "" {
		return auth.EmptyCredential, nil
	}
	if cred, ok := k.memo.get(names[0]); ok {
		return cred, nil
	}
	cred, err := k.look(ctx, names)
	if err != nil {
		return auth.EmptyCredential, err
	}
	k.memo.put(names[0], cred, memoLife)
	return cred, nil
}

// forget makes the next find look again, since the registry refused what was
// found. It tells whether that was a credential.
func (k *keyring) forget(names []string) bool {
	cred, ok := k.memo.get(names[0])
	k.memo.drop(names[0])
	return ok && cred != auth.EmptyCredential
}

func (k *keyring) look(ctx context.Context, names []string) (auth.Credential, error) {
	store, err := credentials.NewStore(k.path, credentials.StoreOptions{})
	if err != nil {
		return auth.EmptyCredential, fmt.Errorf("%w: %s: %s; it must be readable and be a docker config.json", ErrCredentials, k.path, reason(err))
	}
	for _, name := range names {
		cred, err := store.Get(ctx, name)
		if err != nil {
			return auth.EmptyCredential, fmt.Errorf("%w: %s by %s: %s", ErrCredentials, name, k.path, reason(err))
		}
		if cred != auth.EmptyCredential {
			return cred, nil
		}
	}
	return auth.EmptyCredential, nil
}

// reason names the kind of a look's error. Its text may hold what a helper
// printed or the decoded credential, so it goes nowhere.
func reason(err error) string {
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return "given up"
	case errors.Is(err, os.ErrPermission):
		return "permission denied"
	case errors.Is(err, exec.ErrNotFound):
		return "its credential helper (docker-credential-…) is not installed"
	case errors.Is(err, credentials.ErrBadCredentialFormat):
		return "not in the form of a credential"
	}
	return "cannot be read"
}

// keyNames are the names that credentials of a registry are kept under: docker
// login writes the first, podman login and hand-written files the others.
func keyNames(registry, endpointHost string) []string {
	if registry == dockerHub {
		return []string{"https://index.docker.io/v1/", dockerHub, "index.docker.io", dockerHubHost}
	}
	if endpointHost == registry {
		return []string{registry}
	}
	return []string{registry, endpointHost}
}
