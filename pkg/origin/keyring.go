package origin

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/credentials"
)

// keyring finds the node's own credentials in a docker config.json or an auth.json
// of podman (containers-auth.json(5)). The file is read again when it has changed,
// and a credential is remembered only so long that a storm of 401s does not become a
// storm of credential helpers.
type keyring struct {
	path string
	memo *expiring[string, auth.Credential] // by entry

	mu    sync.Mutex
	stamp fileStamp // of what keys was read from
	keys  keyFile
}

const (
	memoLife = 30 * time.Second
	maxMemo  = 256
)

func newKeyring(path string) *keyring {
	return &keyring{path: path, memo: newExpiring[string, auth.Credential](maxMemo)}
}

// file returns the names in the file as it is now.
func (k *keyring) file() (keyFile, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	stamp := stampOf(k.path)
	if stamp == k.stamp {
		return k.keys, nil
	}
	text, err := os.ReadFile(k.path)
	if errors.Is(err, os.ErrNotExist) {
		text, err = []byte("{}"), nil
	}
	var keys keyFile
	if err == nil {
		keys, err = parseKeys(text)
	}
	if err != nil {
		return keyFile{}, fmt.Errorf("%w: %s: %s; it must be readable and be a docker config.json", ErrCredentials, k.path, reason(err))
	}
	k.stamp, k.keys = stamp, keys
	return keys, nil
}

// entry is the name of the credential that counts for a repository alone, by the
// longest match ("registry.example.com/team/app", "registry.example.com/team"); ""
// where that of the registry does.
func (k *keyring) entry(names []string, repo string) string {
	if k == nil || k.path == "" {
		return ""
	}
	keys, err := k.file()
	if err != nil {
		return "" // find says so when a credential is needed
	}
	return keys.namespaced(names, repo)
}

// find returns the credential of an entry, or where that is "" of a registry, whose
// names are given in the order in which they count; the empty one where there is
// none. Errors hold no part of a credential.
func (k *keyring) find(ctx context.Context, names []string, entry string) (auth.Credential, error) {
	if k.path == "" {
		return auth.EmptyCredential, nil
	}
	of := memoName(names, entry)
	if cred, ok := k.memo.get(of); ok {
		return cred, nil
	}
	cred, err := k.look(ctx, names, entry)
	if err != nil {
		return auth.EmptyCredential, err
	}
	k.memo.put(of, cred, memoLife)
	return cred, nil
}

// memoName is what a found credential is remembered by.
func memoName(names []string, entry string) string {
	if entry != "" {
		return entry
	}
	return names[0]
}

// forget makes the next find look again, since the registry refused what was
// found. It tells whether that was a credential. No shorter match takes its place:
// the operator meant that one for this repository.
func (k *keyring) forget(names []string, entry string) bool {
	of := memoName(names, entry)
	cred, ok := k.memo.get(of)
	k.memo.drop(of)
	return ok && cred != auth.EmptyCredential
}

func (k *keyring) look(ctx context.Context, names []string, entry string) (auth.Credential, error) {
	keys, err := k.file()
	if err != nil {
		return auth.EmptyCredential, err
	}
	if entry != "" {
		return k.read(ctx, entry)
	}
	for _, name := range names {
		var cred auth.Credential
		var err error
		if helper := keys.helper(name); helper != "" {
			cred, err = credentials.NewNativeStore(helper).Get(ctx, name)
		} else if key, ok := keys.host(name); ok {
			cred, err = k.read(ctx, key)
		}
		if err != nil {
			return auth.EmptyCredential, fmt.Errorf("%w: %s by %s: %s", ErrCredentials, name, k.path, reason(err))
		}
		if cred != auth.EmptyCredential {
			return cred, nil
		}
	}
	return auth.EmptyCredential, nil
}

// read returns what stands in the file under that very key.
func (k *keyring) read(ctx context.Context, key string) (auth.Credential, error) {
	store, err := credentials.NewFileStore(k.path)
	if err == nil {
		var cred auth.Credential
		if cred, err = store.Get(ctx, key); err == nil {
			return cred, nil
		}
	}
	return auth.EmptyCredential, fmt.Errorf("%w: %s by %s: %s", ErrCredentials, key, k.path, reason(err))
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
	case errors.Is(err, errKeyFile):
		return "not JSON of that form"
	}
	return "cannot be read"
}

// keyNames are the names that credentials of a registry are kept under: docker
// login writes the first, podman login and hand-written files the others.
func keyNames(registry string, endpoint *url.URL) []string {
	if registry == dockerHub {
		return []string{"https://index.docker.io/v1/", dockerHub, "index.docker.io", dockerHubHost}
	}
	names := []string{registry}
	if bare, ok := strings.CutSuffix(registry, ":80"); ok && endpoint.Scheme == "http" {
		names = append(names, bare)
	} else if endpoint.Scheme == "http" && !hasPort(registry) {
		names = append(names, registry+":80")
	}
	if endpoint.Host != registry {
		names = append(names, endpoint.Host)
	}
	return names
}
