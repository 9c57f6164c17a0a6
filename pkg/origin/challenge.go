package origin

import (
	"fmt"
	"net/url"
	"strings"
)

// challenge is one way in that a 401 offers (RFC 9110 section 11.6.1). Scheme
// and parameter names are in lower case.
type challenge struct {
	scheme string
	params map[string]string
}

const (
	schemeBasic  = "basic"
	schemeBearer = "bearer"

	maxChallenges = 16
	maxChallenge  = 8 << 10
	maxRealm      = 2 << 10
)

// parseChallenges reads all WWW-Authenticate fields of an answer. A field may
// hold several challenges. What cannot be read ends that field.
func parseChallenges(fields []string) []challenge {
	var out []challenge
	for _, f := range fields {
		if len(f) > maxChallenge {
			continue
		}
		p := challengeParser{rest: f}
		for len(out) < maxChallenges {
			c, ok := p.next()
			if !ok {
				break
			}
			out = append(out, c)
		}
	}
	return out
}

type challengeParser struct{ rest string }

// next reads a scheme and what belongs to it: parameters, or a token68 that no
// scheme of ours has.
func (p *challengeParser) next() (challenge, bool) {
	p.skip(" \t,")
	scheme := p.token()
	if scheme == "" {
		return challenge{}, false
	}
	c := challenge{scheme: strings.ToLower(scheme), params: map[string]string{}}
	if !strings.HasPrefix(p.rest, " ") && !strings.HasPrefix(p.rest, "\t") {
		return c, p.rest == "" || p.rest[0] == ','
	}
	p.skip(" \t")
	if p.token68() {
		return c, true
	}
	for {
		before := p.rest
		p.skip(" \t,")
		key := strings.ToLower(p.token())
		p.skip(" \t")
		if key == "" || !strings.HasPrefix(p.rest, "=") {
			p.rest = before // the next challenge's scheme, or the end
			return c, true
		}
		p.rest = p.rest[1:]
		p.skip(" \t")
		value, ok := p.value()
		if !ok {
			p.rest = ""
			return c, true
		}
		if _, twice := c.params[key]; !twice {
			c.params[key] = value
		}
	}
}

func (p *challengeParser) skip(chars string) { p.rest = strings.TrimLeft(p.rest, chars) }

func (p *challengeParser) token() string {
	i := 0
	for i < len(p.rest) && isTokenChar(p.rest[i]) {
		i++
	}
	t := p.rest[:i]
	p.rest = p.rest[i:]
	return t
}

// token68 skips a token68 that fills its challenge.
func (p *challengeParser) token68() bool {
	i := 0
	for i < len(p.rest) && (isAlnum(p.rest[i]) || strings.IndexByte("-._~+/", p.rest[i]) >= 0) {
		i++
	}
	j := i
	for j < len(p.rest) && p.rest[j] == '=' {
		j++
	}
	tail := strings.TrimLeft(p.rest[j:], " \t")
	if i == 0 || tail != "" && tail[0] != ',' {
		return false
	}
	p.rest = tail
	return true
}

// value reads a quoted string, or what stands there up to a comma or space: some
// registries send their realm without quotes.
func (p *challengeParser) value() (string, bool) {
	if !strings.HasPrefix(p.rest, `"`) {
		end := strings.IndexAny(p.rest, " \t,")
		if end < 0 {
			end = len(p.rest)
		}
		v := p.rest[:end]
		p.rest = p.rest[end:]
		return v, v != "" && !strings.Contains(v, `"`)
	}
	var b strings.Builder
	for i := 1; i < len(p.rest); i++ {
		switch c := p.rest[i]; c {
		case '"':
			p.rest = p.rest[i+1:]
			return b.String(), true
		case '\\':
			if i++; i == len(p.rest) {
				return "", false
			}
			b.WriteByte(p.rest[i])
		default:
			b.WriteByte(c)
		}
	}
	return "", false
}

func isAlnum(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

func isTokenChar(c byte) bool {
	return isAlnum(c) || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}

// parseRealm checks the token realm that a registry at home names. A registry
// that is reached by TLS may not send credentials to a realm that is not.
func parseRealm(realm string, home *url.URL) (*url.URL, error) {
	if len(realm) > maxRealm {
		return nil, fmt.Errorf("realm is longer than %d bytes", maxRealm)
	}
	u, err := parseHTTP(realm)
	if err != nil {
		return nil, fmt.Errorf("realm: %w", err)
	}
	if home.Scheme == "https" && u.Scheme != "https" {
		return nil, fmt.Errorf("realm %s is plain http while the registry is https", redactURL(u))
	}
	u.Fragment, u.RawFragment = "", ""
	return u, nil
}
