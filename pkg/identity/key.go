package identity

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
)

const (
	keyFile    = "node.key"
	keyPEMType = "PRIVATE KEY"
)

// Key is a node's private key and the ID that follows from it. The zero Key is
// not valid. Safe for concurrent use.
type Key struct {
	private ed25519.PrivateKey
	id      string
}

// LoadOrCreateKey returns the ed25519 key kept in dir (node.key, PEM, PKCS #8,
// mode 0600), and makes dir and key when they are missing. Processes that call
// it at once get the same key. A file that is not such a key, or that everybody
// may read, is an error; it is never overwritten.
func LoadOrCreateKey(dir string) (Key, error) {
	if err := makeDir(dir); err != nil {
		return Key{}, fmt.Errorf("make identity directory: %w", err)
	}
	path := filepath.Join(dir, keyFile)
	content, err := readSecret(path)
	if errors.Is(err, fs.ErrNotExist) {
		content, err = createKey(path)
	}
	if err != nil {
		return Key{}, fmt.Errorf("node key: %w", err)
	}
	key, err := parseKey(content)
	if err != nil {
		return Key{}, fmt.Errorf("node key %s: %w; move it away to get a new one", path, err)
	}
	return key, nil
}

// createKey makes a key at path and returns what stands there, which is another
// process's key when that one was first.
func createKey(path string) ([]byte, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, err
	}
	content := pem.EncodeToMemory(&pem.Block{Type: keyPEMType, Bytes: der})
	if _, err := createFile(path, content); err != nil {
		return nil, err
	}
	return readSecret(path)
}

func parseKey(content []byte) (Key, error) {
	block, _ := pem.Decode(content)
	if block == nil || block.Type != keyPEMType {
		return Key{}, errors.New("no PEM block PRIVATE KEY in it")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return Key{}, err
	}
	private, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return Key{}, fmt.Errorf("it holds a %T, want an ed25519 key", parsed)
	}
	return newKey(private)
}

func newKey(private ed25519.PrivateKey) (Key, error) {
	id, err := idOf(private.Public())
	if err != nil {
		return Key{}, err
	}
	return Key{private: private, id: id}, nil
}

// ID is the libp2p peer ID of the key, in its base58 form ("12D3KooW…").
func (k Key) ID() string { return k.id }

// Private is the key itself, for another protocol that shares the identity.
// The caller must not change or log it.
func (k Key) Private() ed25519.PrivateKey { return k.private }

func (k Key) String() string { return "key of " + k.id }

// GoString keeps the private key out of %#v.
func (k Key) GoString() string { return k.String() }

// request makes a PKCS #10 request that proves possession of the key. It
// carries no name: the issuer would ignore it.
func (k Key) request() ([]byte, error) {
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, k.private)
}

// idOf returns the libp2p peer ID of an ed25519 public key (libp2p peer-ids
// spec); any other type of key is an error.
func idOf(public any) (string, error) {
	key, ok := public.(ed25519.PublicKey)
	if !ok {
		return "", fmt.Errorf("the key is a %T, want an ed25519 key", public)
	}
	wrapped, err := crypto.UnmarshalEd25519PublicKey(key)
	if err != nil {
		return "", err
	}
	id, err := peer.IDFromPublicKey(wrapped)
	if err != nil {
		return "", err
	}
	return id.String(), nil
}

// CheckID reports what is wrong with s as the peer ID of an ed25519 key in its
// one canonical form.
func CheckID(s string) error {
	if len(s) > maxIDLength {
		return fmt.Errorf("a peer ID has at most %d characters, this has %d", maxIDLength, len(s))
	}
	id, err := peer.Decode(s)
	if err != nil {
		return err
	}
	public, err := id.ExtractPublicKey()
	if err != nil {
		return err
	}
	if public.Type() != crypto.Ed25519 {
		return fmt.Errorf("peer ID of a %s key, want ed25519", public.Type())
	}
	if id.String() != s {
		return errors.New("peer ID is not in its base58 form")
	}
	return nil
}

// maxIDLength is above the 52 characters of an ed25519 peer ID.
const maxIDLength = 64
