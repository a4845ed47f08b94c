package network

import (
	"errors"
	"fmt"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// Obstacles lists what else on this host drops packets that pass through it, by
// the names of nftables: "ip filter FORWARD". A table of ours cannot let through
// what another one drops, so the way out needs a rule there, too. What legacy
// iptables has is not seen. It changes nothing, and needs root.
func Obstacles() ([]string, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	chains, err := conn.ListChains()
	if withoutTables(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	var all []string
	for _, c := range chains {
		forwards := c.Hooknum != nil && *c.Hooknum == *nftables.ChainHookForward && c.Type == nftables.ChainTypeFilter
		if forwards && c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop {
			all = append(all, fmt.Sprintf("%s %s %s", familyName(c.Table.Family), c.Table.Name, c.Name))
		}
	}
	return all, nil
}

// withoutTables tells whether an error says that the kernel has no nftables.
func withoutTables(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EINVAL)
}

// familyName is what nft calls a family that packets are forwarded in.
func familyName(f nftables.TableFamily) string {
	switch f {
	case nftables.TableFamilyIPv4:
		return "ip"
	case nftables.TableFamilyIPv6:
		return "ip6"
	case nftables.TableFamilyINet:
		return "inet"
	}
	return fmt.Sprintf("family %d", f)
}
