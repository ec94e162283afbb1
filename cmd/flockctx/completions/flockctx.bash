# Completion of flockctx for bash. Source it, or install it as
# /usr/share/bash-completion/completions/flockctx

_flockctx()
{
	local cur=$2 i word value='' fd=0 list=0 probe=0 options=1 file=0 command=0
	COMPREPLY=()
	[[ $cur == = ]] && cur= # "--also=" is two words
	# What is before the word: options, the file, the command?
	for ((i = 1; i < COMP_CWORD && !command; i++)); do
		word=${COMP_WORDS[i]}
		if ((options)); then
			case $word in
			--list) list=1 ;;
			--probe) probe=1 ;;
			--fd) fd=1 ;;
			--) options=0 ;;
			esac
			case $word in
			--wait | --timeout | --conflict-exit-code | --also | --slots | --start | --length | --fd) ;;
			-c | --command)
				((fd)) || continue
				;;
			-*)
				# Bundled: only the last one can have the next word.
				[[ $word =~ ^-[sexunoF]*([wE])$ ]] || continue
				word=-${BASH_REMATCH[1]}
				;;
			*)
				options=0
				;;
			esac
			if [[ $word == -* ]]; then
				if [[ $word != -- ]]; then
					[[ ${COMP_WORDS[i + 1]} == = ]] && ((i++))
					((++i >= COMP_CWORD)) && value=$word
				fi
				continue
			fi
		fi
		if ((fd || file)); then
			command=$i
		else
			file=$i
		fi
	done
	case $value in
	-w | --wait | --timeout)
		mapfile -t COMPREPLY < <(compgen -W '0 1 10 60' -- "$cur")
		return
		;;
	-E | --conflict-exit-code)
		mapfile -t COMPREPLY < <(compgen -W '{0..255}' -- "$cur")
		return
		;;
	--slots)
		mapfile -t COMPREPLY < <(compgen -W "$(nproc 2>/dev/null)" -- "$cur")
		return
		;;
	--also)
		mapfile -t COMPREPLY < <(compgen -f -- "$cur")
		return
		;;
	-c | --command)
		mapfile -t COMPREPLY < <(compgen -c -- "$cur")
		return
		;;
	--*) return ;;
	esac
	if ((list)); then
		mapfile -t COMPREPLY < <(
			compgen -W '--json' -- "$cur"
			compgen -f -- "$cur"
		)
		return
	fi
	if ((probe)); then
		mapfile -t COMPREPLY < <(compgen -d -- "$cur")
		return
	fi
	if ((command)); then
		# The command's arguments, as the command completes them where that is known.
		if declare -F _command_offset >/dev/null && [[ ${COMP_WORDS[command]} != -c ]]; then
			_command_offset "$command"
		else
			mapfile -t COMPREPLY < <(compgen -f -- "$cur")
		fi
		return
	fi
	if ((file)); then
		case $cur in
		-*) mapfile -t COMPREPLY < <(compgen -W '-c --command' -- "$cur") ;;
		*) mapfile -t COMPREPLY < <(compgen -c -- "$cur") ;;
		esac
		return
	fi
	case $cur in
	-*)
		((options)) || return
		mapfile -t COMPREPLY < <(compgen -W '--shared --exclusive --unlock --nonblock --wait --timeout
			--conflict-exit-code --close --command --no-fork --fd --fcntl --start --length --also --slots
			--remove --verbose --quiet --list --json --probe --help --version' -- "$cur")
		;;
	*)
		if ((fd)); then
			mapfile -t COMPREPLY < <(compgen -c -- "$cur")
		else
			mapfile -t COMPREPLY < <(compgen -f -- "$cur")
		fi
		;;
	esac
}

complete -o filenames -F _flockctx flockctx
