package config

import (
	"fmt"
	"io"
)

// blot stands for a secret in everything that is printed.
const blot = "[redacted]"

// Redacted is a secret: a token, a password, a header. Every usual way to print,
// log or marshal it shows [redacted], or nothing if it is empty; only Reveal
// gives it away.
type Redacted string

// Reveal is the secret itself. What it returns must not be logged.
func (r Redacted) Reveal() string { return string(r) }

// String is "[redacted]", or "" when there is no secret.
func (r Redacted) String() string {
	if r == "" {
		return ""
	}
	return blot
}

// Format prints String whatever the verb.
func (r Redacted) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, r.String()) }

// MarshalText is String; JSON, YAML and zap use it.
func (r Redacted) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText takes the secret.
func (r *Redacted) UnmarshalText(text []byte) error {
	*r = Redacted(text)
	return nil
}
