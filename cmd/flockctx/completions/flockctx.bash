# Completion of flockctx for bash. Source it, or install it as
# /usr/share/bash-completion/completions/flockctx

_flockctx()
{
	local cur=$2 prev=$3 i word operands=0 command=0 list=0 probe=0
	COMPREPLY=()
	# What is before the word: options, the file, the command?
	for ((i = 1; i < COMP_CWORD; i++)); do
		word=${COMP_WORDS[i]}
		case $operands:$word in
		0:--list) list=1 ;;
		0:--probe) probe=1 ;;
		0:--fd) operands=1 ;;&
		0:-w | 0:--wait | 0:--timeout | 0:-E | 0:--conflict-exit-code | 0:--also | 0:--start | 0:--length | 0:--fd | 1:--fd) ((i++)) ;;
		0:-*) ;;
		*) ((operands++)) ;;
		esac
	done
	if ((list)); then
		COMPREPLY=($(compgen -W '--json' -- "$cur") $(compgen -f -- "$cur"))
		return
	fi
	if ((probe)); then
		COMPREPLY=($(compgen -d -- "$cur"))
		return
	fi
	if ((operands == 0)); then
		case $prev in
		-w | --wait | --timeout)
			COMPREPLY=($(compgen -W '0 1 10 60' -- "$cur"))
			return
			;;
		-E | --conflict-exit-code)
			COMPREPLY=($(compgen -W '{0..255}' -- "$cur"))
			return
			;;
		--fd | --start | --length) return ;;
		--also)
			COMPREPLY=($(compgen -f -- "$cur"))
			return
			;;
		esac
		case $cur in
		-*)
			COMPREPLY=($(compgen -W '--shared --exclusive --unlock --nonblock --wait --timeout
				--conflict-exit-code --close --command --no-fork --fd --fcntl --start --length --also
				--remove --verbose --quiet --list --json --probe --help --version' -- "$cur"))
			;;
		*) COMPREPLY=($(compgen -f -- "$cur")) ;;
		esac
		return
	fi
	if ((operands == 1)); then
		case $cur in
		-*) COMPREPLY=($(compgen -W '-c --command' -- "$cur")) ;;
		*) COMPREPLY=($(compgen -c -- "$cur")) ;;
		esac
		return
	fi
	# The command's arguments, as the command completes them where that is known.
	if declare -F _command_offset >/dev/null && ((operands > 1)); then
		for ((i = 1; i < COMP_CWORD; i++)); do
			[[ ${COMP_WORDS[i]} == -* ]] || break
		done
		_command_offset $((i + 1))
		return
	fi
	COMPREPLY=($(compgen -f -- "$cur"))
}

complete -o filenames -F _flockctx flockctx
