package identity

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

const (
	tokenPrefix   = "dmf1"
	tokenIDBytes  = 8
	tokenIDLength = 2 * tokenIDBytes
	secretBytes   = 32
)

// Token is a parsed join token. It prints without its secret.
type Token struct {
	// ID names the token on the scheduler.
	ID string

	pin    [sha256.Size]byte
	secret string
}

// ParseToken reads a join token, dmf1.<SHA-256 of the CA's public key>.<id>.<secret>,
// with white space around it ignored. Its errors never quote the token.
func ParseToken(s string) (Token, error) {
	parts := strings.Split(strings.TrimSpace(s), ".")
	if parts[0] != tokenPrefix {
		return Token{}, fmt.Errorf("not a join token: it starts with %q; `scheduler token create` makes one", tokenPrefix+".")
	}
	if len(parts) != 4 {
		return Token{}, errors.New("join token is cut off: it has four parts with dots between them")
	}
	t := Token{ID: parts[2], secret: parts[3]}
	pin, err := hex.DecodeString(parts[1])
	if err != nil || len(pin) != len(t.pin) || hex.EncodeToString(pin) != parts[1] {
		return Token{}, errors.New("join token is damaged: its second part must be 64 lower-case hex digits")
	}
	copy(t.pin[:], pin)
	if !validTokenID(t.ID) {
		return Token{}, fmt.Errorf("join token is damaged: its third part must be %d lower-case hex digits", tokenIDLength)
	}
	if !validSecret(t.secret) {
		return Token{}, errors.New("join token is damaged: its last part is not as long as a secret, or has other characters")
	}
	return t, nil
}

func newToken(pin [sha256.Size]byte) (Token, error) {
	random := make([]byte, tokenIDBytes+secretBytes)
	if _, err := rand.Read(random); err != nil {
		return Token{}, err
	}
	return Token{
		ID:     hex.EncodeToString(random[:tokenIDBytes]),
		pin:    pin,
		secret: base64.RawURLEncoding.EncodeToString(random[tokenIDBytes:]),
	}, nil
}

// reveal is the whole token with its secret.
func (t Token) reveal() string {
	return strings.Join([]string{tokenPrefix, hex.EncodeToString(t.pin[:]), t.ID, t.secret}, ".")
}

// String is the token without its secret, for logs.
func (t Token) String() string {
	return strings.Join([]string{tokenPrefix, hex.EncodeToString(t.pin[:]), t.ID, "…"}, ".")
}

// GoString keeps the secret out of %#v.
func (t Token) GoString() string { return t.String() }

func validTokenID(id string) bool {
	raw, err := hex.DecodeString(id)
	return err == nil && len(raw) == tokenIDBytes && hex.EncodeToString(raw) == id
}

func validSecret(secret string) bool {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(secret)
	return err == nil && len(raw) == secretBytes && base64.RawURLEncoding.EncodeToString(raw) == secret
}
