from .reference import convert_name, convert_reference_state_dict

__all__ = ['convert_name', 'convert_reference_state_dict']
